"""ASR: the attack success rate, in the three meanings that the literature mixes up, with Wilson's intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from efface.errors import BadInput
from efface.evaluation.stats import Interval, wilson


class Rate(NamedTuple):
    """A share of successes: `hits` of `n`, with its 95 % interval."""

    hits: int
    n: int
    interval: Interval

    @classmethod
    def of(cls, successes: Sequence[bool]) -> "Rate":
        """Count successes."""
        return cls(sum(successes), len(successes), wilson(sum(successes), len(successes)))

    @property
    def share(self) -> float:
        """Return hits / n, 0 when nothing was tried."""
        return self.hits / self.n if self.n else 0.0

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits} of {self.n} ({100 * self.share:.0f} % [{100 * low:.0f}, {100 * high:.0f}])"


class ASR(NamedTuple):
    """Attack success rates.

    pre: the plain prompts succeed without an attack. post: of the prompts that fail without it, those that succeed
    under attack. combined: prompts that succeed with or without it, which is what UnlearnDiffAtk reports as ASR.
    """

    pre: Rate
    post: Rate
    combined: Rate


def attack_success(plain: Sequence[bool], attacked: Sequence[bool]) -> ASR:
    """Return the rates of pairs: the same prompt and seed without and with the attack.

    Source: Zhang et al. 2023, https://arxiv.org/abs/2310.11868, and its code, which counts pre-attack successes.
    Raises `BadInput` when the lengths differ.
    """
    if len(plain) != len(attacked):
        raise BadInput(f"{len(plain)} plain and {len(attacked)} attacked queries are no pairs")
    pairs = list(zip(plain, attacked, strict=True))
    return ASR(
        Rate.of(plain), Rate.of([after for before, after in pairs if not before]), Rate.of([a or b for a, b in pairs])
    )


__all__ = ["ASR", "Rate", "attack_success"]
