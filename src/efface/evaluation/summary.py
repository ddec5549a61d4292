"""Summaries of verdicts per image: shares, paired changes and means, with intervals or standard errors."""

import math
from collections.abc import Sequence

from efface.evaluation.stats import Interval, paired_difference, wilson
from efface.util.values import Value

DIGITS = 6  # digits of stored numbers


class Share(Value):
    """Hold a count of n images."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """Return hits / n, 0 for no images."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> Interval:
        """Return Wilson's 95 % interval."""
        return wilson(self.hits, self.n)

    @classmethod
    def of(cls, verdicts: Sequence[bool]) -> "Share":
        """Count verdicts."""
        return cls(hits=sum(verdicts), n=len(verdicts))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits} of {self.n} ({100 * self.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}])"

    @property
    def rest(self) -> "Share":
        """Return the share of the other images."""
        return Share(hits=self.n - self.hits, n=self.n)

    def __add__(self, other: "Share") -> "Share":
        return Share(hits=self.hits + other.hits, n=self.n + other.n)


class Change(Value):
    """Hold the paired difference of two shares, after minus before, with Newcombe's 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> "Change":
        """Compute the change from paired verdicts; raises `BadInput` when their numbers differ."""
        low, high = paired_difference(before, after)
        n = max(1, len(before))
        return cls(value=sum(after) / n - sum(before) / n, low=low, high=high)


class Summary(Value):
    """Hold the verdicts on a group of prompts, for the original model (before) and the edited one (after).

    before, after: images in which the judge's first name is the right one; before5, after5: among its first five.
    change: of before to after, paired.
    """

    before: Share
    after: Share
    before5: Share
    after5: Share
    change: Change


class ConceptSummary(Summary):
    """Hold the same for one concept, with its group and whether the edit was told to preserve it."""

    group: str
    preserved: bool


class Mean(Value):
    """Hold a mean over n images and its standard error."""

    value: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Compute both; the error of fewer than two values is 0."""
        n = len(values)
        mean = sum(values) / max(1, n)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
        return cls(value=round(mean, DIGITS), error=round(spread / math.sqrt(max(1, n)), DIGITS), n=n)
