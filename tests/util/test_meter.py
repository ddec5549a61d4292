import gc
import os
import time

import pytest
import torch

from efface.util.meter import COST, metered

marked = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not forget the highest mark of memory"
)


def test_seconds_of_waiting_are_wall_seconds_only():
    with metered() as meter:
        time.sleep(0.2)
    cost = meter.read()
    assert set(cost) <= set(COST)
    assert 0.2 <= cost["seconds"] < 2
    assert cost["cpu_seconds"] < 0.1


@marked
def test_peak_is_that_of_the_work_inside_and_outer_work_remembers_it():
    gc.collect()  # garbage of earlier tests that is freed on the way would hide the 160 MB
    with metered() as outer:
        with metered() as inner:
            torch.ones(160 << 18)  # 160 MB of fp32, freed at once
        with metered() as after:
            pass
        small = after.read()
    large = inner.read()
    assert large["peak_mb"] >= large["loaded_mb"] + 158
    assert small["peak_mb"] < small["loaded_mb"] + 20
    assert outer.read()["peak_mb"] >= large["loaded_mb"] + 158
