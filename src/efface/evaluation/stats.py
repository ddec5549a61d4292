"""Intervals for proportions: Wilson's for one; Newcombe's and a bootstrap for the difference of two, paired."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from efface.errors import BadInput


class Interval(NamedTuple):
    """A 95 % interval, or any other level, as a pair of ends."""

    low: float
    high: float


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion: `hits` of `n`.

    Unlike the normal interval it stays inside [0, 1] and is not empty at 0 or n hits.
    n = 0 gives [0, 1]: nothing was seen, so nothing is ruled out. Raises BadInput unless 0 <= hits <= n.
    Source: Wilson (1927), Journal of the American Statistical Association 22.
    """
    from scipy.stats import binomtest

    if not 0 <= hits <= n:
        raise BadInput(f"a proportion needs 0 <= hits <= n, given {hits} of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    ends = binomtest(hits, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def paired_difference(before: Sequence[bool], after: Sequence[bool], level: float = 0.95) -> Interval:
    """Return the interval of mean(after) - mean(before) for pairs (same prompt, same seed).

    Built from the two Wilson intervals and the correlation of the pairs, so unlike the bootstrap it does not shrink
    to a point when no pair changed. Empty input gives [-1, 1]. Raises BadInput when the lengths differ.
    Source: Newcombe (1998), Statistics in Medicine 17, 2635 to 2650, method 10.
    """
    n = _check_pairs(before, after)
    if n == 0:
        return Interval(-1.0, 1.0)
    both = sum(a and b for a, b in zip(after, before, strict=True))
    x, y = sum(after), sum(before)
    p, q = x / n, y / n
    (l1, u1), (l2, u2) = wilson(x, n, level), wilson(y, n, level)
    phi = _correlation(both, x - both, y - both, n)
    low = math.sqrt(max(0.0, (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2))
    high = math.sqrt(max(0.0, (u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2))
    return Interval(p - q - low, p - q + high)


def _correlation(both: int, first: int, second: int, n: int) -> float:
    """Return phi of a paired 2 × 2 table, with Newcombe's correction for continuity when it is positive."""
    neither = n - both - first - second
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = both * neither - first * second
    return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def _check_pairs(before: Sequence[bool], after: Sequence[bool]) -> int:
    if len(before) != len(after):
        raise BadInput(f"pairs need equal lengths, given {len(before)} before and {len(after)} after")
    return len(before)


def paired_bootstrap(
    before: Sequence[bool], after: Sequence[bool], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Return the bootstrap interval of mean(after) - mean(before) for pairs (same prompt, same seed).

    Resamples pairs, not images, so effects that both images share (a hard prompt, an unlucky seed) cancel. The
    difference of a pair is -1, 0 or 1, so one resample of n pairs is one multinomial count. Percentile interval: a
    point when no pair changed, so prefer `paired_difference` for few images.
    Empty input gives [-1, 1]. Raises BadInput when the lengths differ.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    n = _check_pairs(before, after)
    if n == 0:
        return Interval(-1.0, 1.0)
    change = np.asarray(after, dtype=int) - np.asarray(before, dtype=int)  # (n,) in {-1, 0, 1}
    shares = [float(np.mean(change == value)) for value in (-1, 0, 1)]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=draws)  # (draws, 3)
    means = (counts[:, 2] - counts[:, 0]) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
