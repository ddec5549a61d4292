import subprocess
import sys

import pytest

from efface.errors import BadInput
from efface.util.seeds import MAX_SEED, check_seed


def test_a_seed_is_returned_as_it_is():
    assert [check_seed(seed) for seed in (0, 7, MAX_SEED)] == [0, 7, 2**63 - 1]


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, True, 1.0, "1", None])
def test_what_is_no_seed_is_refused(seed):
    check = getattr(check_seed, "__wrapped__", check_seed)  # without the type check of the tests
    with pytest.raises(BadInput, match="--seed is a whole number from 0 to 2\\^63 - 1, got"):
        check(seed, "--seed")


def test_solvers_and_seeds_are_known_without_torch():
    code = (
        "import sys; from efface.util.solvers import SOLVERS; from efface.util.seeds import MAX_SEED; "
        "assert SOLVERS; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
