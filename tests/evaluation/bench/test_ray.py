"""A bench on a local Ray cluster: the same records, also when a worker is lost."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

import efface
from efface.evaluation.bench.file import parse
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import jobs
from efface.evaluation.bench.work import Here, RayTasks, work
from efface.evaluation.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray warns about its own matters
GRADIENT = {"restarts": 1, "iterations": 1, "noises": 1, "steps": 1, "images": 1, "ranking": 1}
BENCH = {
    "model": "digits:mnist",
    "concepts": ["7", "8"],
    "methods": ["negative", {"name": "esd", "steps": 1, "batch": 1, "params": "full"}],
    "attacks": [{"name": "gradient", **GRADIENT}],
    "seeds": {"target": 2, "others": 1, "related": 1, "attack": 2},
}


def kill_a_worker(killed: list[int]) -> None:
    """Kill the first worker that runs a task."""
    until = time.monotonic() + 120
    while not killed and time.monotonic() < until:
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                if process.name().startswith("ray::_on_one_core"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except (psutil.Error, ProcessLookupError):
                continue
        time.sleep(0.05)


def test_tasks_give_the_same_records_when_a_worker_is_killed(tmp_path: Path, results) -> None:
    ray = pytest.importorskip("ray")
    planned = jobs(parse(BENCH), efface.load("digits:mnist").id)
    serial, folder = Folder(tmp_path / "serial"), Folder(tmp_path / "ray")
    work(planned, serial, Here(serial, Store(tmp_path / "store")))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    killed: list[int] = []
    hunter = threading.Thread(target=kill_a_worker, args=(killed,))
    hunter.start()
    try:
        outcome = work(planned, folder, RayTasks(folder, Store(tmp_path / "other"), "auto"))
    finally:
        hunter.join()
        ray.shutdown()
    assert killed
    assert outcome.failed == {}
    assert outcome.done == len(planned)
    assert results(folder.root) == results(serial.root)
