"""Strength of an edit: the smallest whose Erasure Score is low enough, from one training (Pham et al., 2024).

Robust Concept Erasure Using Task Vectors, https://arxiv.org/abs/2404.03631, section 4.2 and figures 4 and 12.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.erasure_score import ErasureScore
from efface.util.progress import progress


@dataclass(frozen=True)
class Tried:
    """Hold what was measured at one strength: the Erasure Score and, where there is one, the control."""

    strength: float
    score: ErasureScore
    control: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the point of figure 4, as JSON values."""
        score = self.score
        return {
            "strength": self.strength, "score": score.value, "mean": score.mean, "n": score.n, "control": self.control,
        }  # fmt: skip


@dataclass(frozen=True)
class Strengths:
    """Hold the strengths tried, ascending, and the rule that chooses among them.

    below: what the Erasure Score has to be below. least: what the control has to reach, None for no rule.
    """

    tried: tuple[Tried, ...]
    below: float
    least: float | None = None

    def good(self, one: Tried) -> bool:
        """Return whether a strength fulfils the rule."""
        kept = self.least is None or (one.control is not None and one.control >= self.least)
        return one.score.value < self.below and kept

    @property
    def chosen(self) -> Tried | None:
        """Return the smallest strength that fulfils the rule, None when none of those tried does.

        The score need not fall with the strength, so that larger ones may fail.
        """
        return next((one for one in self.tried if self.good(one)), None)

    @property
    def why(self) -> str:
        """Return in a sentence which strength was chosen, or what kept every one from it."""
        if (chosen := self.chosen) is not None:
            return f"strength {chosen.strength:g}: the smallest of {len(self.tried)} with a score below {self.below:g}"
        low = [one for one in self.tried if one.score.value < self.below]
        if low:
            best = max(one.control for one in low if one.control is not None)
            return (
                f"no strength: of {len(self.tried)}, {len(low)} have a score below {self.below:g}, but a control of at "
                f"most {best:.3g}, which has to be at least {self.least:g}"
            )
        least = min(self.tried, key=lambda one: one.score.value)
        return (
            f"no strength: the lowest score of {len(self.tried)} is {least.score.value:.3g} at {least.strength:g}, "
            f"and has to be below {self.below:g}"
        )

    def first(self, count: int) -> "Strengths":
        """Return the choice with the first embeddings only, from the same images (figure 12)."""
        return replace(self, tried=tuple(replace(one, score=one.score.first(count)) for one in self.tried))


def choose_strength(
    make_edit: Callable[[float], Edit],
    strengths: Sequence[float | int],
    score: Callable[[Edit], ErasureScore],
    below: float,
    control: Callable[[Edit], float] | None = None,
    least: float | None = None,
    bisect: int = 0,
    stop: bool = False,
) -> Strengths:
    """Measure edits of several strengths, and choose the smallest whose Erasure Score is below τ.

    make_edit: strength -> edit; `lambda s: s * edit` for one training. strengths: above 0, tried in ascending order.
    score: of an edit, with kept embeddings. below: τ, such as 0.24 for the paper's CLIP (ViT-B/32 of LAION-2B).
    control: how well unrelated concepts survive, higher is better; least: what it has to reach. bisect: how often to
    halve the gap between the chosen strength and the next smaller one tried. stop: whether to try no larger strength
    once one is chosen; without it the whole scatter of figure 4 is measured.
    Raises `BadInput` for no strengths, one that is not above 0 or finite, and `least` without `control`.
    """
    grid = sorted({float(one) for one in strengths})
    if not grid or not all(0 < one < math.inf for one in grid):
        raise BadInput(f"strengths are finite numbers above 0, at least one, got {list(strengths)}")
    if not math.isfinite(below) or bisect < 0:
        raise BadInput(f"below is a finite number and bisect at least 0, got {below} and {bisect}")
    if least is not None and control is None:
        raise BadInput(f"a control of at least {least:g} needs a control to measure")

    def measure(strength: float) -> Tried:
        edit = make_edit(strength)
        return Tried(strength, score(edit), None if control is None else float(control(edit)))

    found = Strengths((), below, least)

    def add(strength: float) -> None:
        nonlocal found
        found = replace(found, tried=tuple(sorted((*found.tried, measure(strength)), key=lambda one: one.strength)))

    for strength in progress(grid, "strengths"):
        add(strength)
        if stop and found.chosen is not None:
            break
    for _ in range(bisect):
        best = found.chosen
        if best is None:
            break
        smaller = [one.strength for one in found.tried if one.strength < best.strength]
        add((max(smaller, default=0.0) + best.strength) / 2)
    return found


__all__ = ["Strengths", "Tried", "choose_strength"]
