"""What is computed from verdicts per image: shares, paired changes, means, each with what says how sure they are."""

import math
from collections.abc import Sequence

from efface.evaluation.stats import Interval, paired_difference, wilson
from efface.util.values import Value

DIGITS = 6  # that stored numbers are rounded to


class Share(Value):
    """So many of n images."""

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

    @property
    def rest(self) -> "Share":
        """Return the share of the other images."""
        return Share(hits=self.n - self.hits, n=self.n)

    def __add__(self, other: "Share") -> "Share":
        return Share(hits=self.hits + other.hits, n=self.n + other.n)


class Change(Value):
    """The difference of two shares of the same prompts and seeds, after minus before, with Newcombe's 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> "Change":
        """Compute it from paired verdicts; raises `BadInput` when their numbers differ."""
        low, high = paired_difference(before, after)
        n = max(1, len(before))
        return cls(value=sum(after) / n - sum(before) / n, low=low, high=high)


class Summary(Value):
    """The verdicts on some prompts, by the original model (before) and the edited one (after).

    before, after: images in which the judge names first what was asked for; before5, after5: among its first five.
    change: of before to after, paired.
    """

    before: Share
    after: Share
    before5: Share
    after5: Share
    change: Change


class ConceptSummary(Summary):
    """The same for one concept: the group that its prompts count in, and whether the edit was to preserve it."""

    group: str
    preserved: bool


class Mean(Value):
    """A mean over n images and its standard error."""

    value: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Compute it; the error of fewer than two values is 0."""
        n = len(values)
        mean = sum(values) / max(1, n)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
        return cls(value=round(mean, DIGITS), error=round(spread / math.sqrt(max(1, n)), DIGITS), n=n)
