"""Intervals: known values, coverage, and the bootstrap against a plain one."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import BadInput
from efface.evaluation.stats import paired_bootstrap, paired_difference, wilson

Z = 1.959963984540054


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_formula(pair: tuple[int, int]) -> None:
    hits, n = pair
    p = hits / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = wilson(hits, n)
    assert low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert high == pytest.approx(min(1, middle + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_wilson_known_values() -> None:
    assert wilson(0, 32) == (pytest.approx(0), pytest.approx(0.1072, abs=1e-4))
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3)])
def test_wilson_refuses(hits: int, n: int) -> None:
    with pytest.raises(BadInput, match="hits"):
        wilson(hits, n)


def test_bootstrap_equals_resampling_pairs() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(80) < 0.9, rng.random(80) < 0.7
    draws = rng.integers(0, 80, (20_000, 80))
    plain = (after[draws].mean(1) - before[draws].mean(1)).astype(float)
    ends = np.quantile(plain, [0.025, 0.975])
    assert paired_bootstrap(before.tolist(), after.tolist()) == pytest.approx(tuple(ends), abs=0.0126)


def test_bootstrap_of_no_change_is_a_point_and_of_nothing_is_everything() -> None:
    assert paired_bootstrap([True, False] * 9, [True, False] * 9) == (0, 0)
    assert paired_bootstrap([], []) == (-1, 1)
    assert paired_bootstrap([True] * 5, [False] * 5) == (-1, -1)


def test_bootstrap_is_the_same_each_time() -> None:
    before, after = [True] * 20, [True] * 13 + [False] * 7
    assert paired_bootstrap(before, after) == paired_bootstrap(before, after)


@pytest.mark.parametrize("interval", [paired_bootstrap, paired_difference])
def test_pairs_of_unequal_lengths_are_refused(interval: Callable[..., object]) -> None:
    with pytest.raises(BadInput, match="equal lengths"):
        interval([True], [])


def pairs(both: int, gone: int, new: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Make (before, after) from the four counts of a paired table."""
    before = [True] * (both + gone) + [False] * (new + neither)
    return before, [True] * both + [False] * gone + [True] * new + [False] * neither


def test_paired_difference_known_values() -> None:
    """Reproduce an example of the 1998 paper: 36 pairs agree, 12 and 2 do not, difference 0.2."""
    before, after = pairs(both=36, gone=2, new=12, neither=0)
    assert paired_difference(before, after) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


def test_paired_difference_of_no_change_is_no_point() -> None:
    low, high = paired_difference([True] * 9, [True] * 9)
    assert low == pytest.approx(wilson(9, 9).low - 1)
    assert high == pytest.approx(1 - wilson(9, 9).low)
    assert paired_difference([], []) == (-1, 1)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0))
def test_paired_difference_holds_the_difference(counts: tuple[int, int, int, int]) -> None:
    before, after = pairs(*counts)
    low, high = paired_difference(before, after)
    change = (sum(after) - sum(before)) / len(before)
    assert -1 - 1e-9 <= low <= change + 1e-9
    assert change - 1e-9 <= high <= 1 + 1e-9
    back_low, back_high = paired_difference(after, before)
    assert (-back_high, -back_low) == (pytest.approx(low), pytest.approx(high))


def test_paired_difference_covers() -> None:
    """Its 95 % interval holds the true change in about 95 % of samples, where most pairs agree."""
    rng = np.random.default_rng(0)
    trials = 1500
    inside = 0
    for _ in range(trials):
        before = rng.random(60) < 0.9
        after = before & (rng.random(60) < 0.9)  # true change -0.09
        low, high = paired_difference(before.tolist(), after.tolist())
        inside += low <= -0.09 <= high
    assert 0.93 <= inside / trials <= 0.985
