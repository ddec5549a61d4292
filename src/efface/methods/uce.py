"""UCE: edit keys and values in closed form so that a concept reads as another text (Gandikota et al. 2024).

https://arxiv.org/abs/2308.14761
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.methods.closed_form.least_squares import solve
from efface.methods.closed_form.matrices import Preserved, check_scale
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    edited_rows,
    joined,
    preserved_rows,
    summary,
    text_edit,
    text_weights,
)
from efface.methods.closed_form.prompts import PAIRS, Rows
from efface.models.model import Model


@dataclass(frozen=True)
class UCE(ClosedForm):
    """Erase concepts by one least squares over their text vectors, and preserve others.

    erase_scale: weight of every edited vector.
    preserve_scale: weight of every preserved vector; none means 1 / (number of preserved texts), at least 0.1.
    rows: vectors of a prompt that are edited: the last word's (last), from it to the end (tail), or all.
    preserve_rows: vectors of a prompt that are preserved.
    preserve_empty: also preserve the empty prompt.
    technique: replace gives the target's outputs; tensor gives these without their component along the concept's.
    """

    erase_scale: float = 1.0
    preserve_scale: float | None = None
    rows: Literal["tail", "last", "all"] = "tail"
    preserve_rows: Literal["all", "last"] = "all"
    preserve_empty: bool = True
    technique: Literal["replace", "tensor"] = "replace"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper-2023": {},  # the code published with the paper, ridge 0.5
        "repo-2025": {"rows": "last", "preserve_rows": "last", "preserve_empty": False, "preserve_scale": 1.0},
        "mini": {"templates": MINI, "style_templates": MINI_STYLES, "style_target": "", "ridge": 100.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("erase_scale", self.erase_scale, positive=True)
        if self.preserve_scale is not None:
            check_scale("preserve_scale", self.preserve_scale)

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit; nothing is random in it."""
        names = text_weights(model)
        check_texts(model, erase, preserve)
        others = self.preserved_prompts(preserve, erase, self.preserve_empty)
        scale = max(0.1, 1 / max(1, len(others))) if self.preserve_scale is None else self.preserve_scale
        preserved = preserved_rows(model, others, self.preserve_rows, scale)
        phrases = [pair for pairs in self.phrases(erase) for pair in pairs]
        pairs = list(edited_rows(model, phrases, PAIRS[self.rows]))
        report = {"texts": len(phrases), "preserved_texts": len(others), "preserve_scale": scale}
        if self.technique == "tensor":
            return self._tensor(model, names, pairs, preserved, report)
        fit = solve(*joined(pairs), self.ridge, self.erase_scale, preserved)
        return text_edit(names, fit.step, {**report, **summary(fit)})

    def _tensor(
        self,
        model: Model,
        names: Sequence[str],
        pairs: list[tuple[Tensor, Tensor]],
        preserved: Preserved,
        report: dict[str, Any],
    ) -> Edit:
        """Solve for each matrix by itself: its targets lose their part along the concept's own values."""
        delta: dict[str, Tensor] = {}
        for name, weight in model.weights().items():
            if name in names:
                wide = weight.detach().cpu().double()
                own = [(old, _without(wide, old, new)) for old, new in pairs]
                step = solve(*joined(own), self.ridge, self.erase_scale, preserved).step
                delta[name] = ((wide @ step.left) @ step.right).float()
        return Edit(delta=delta, meta={"closed_form": report})


def _without(weight: Float[Tensor, "out dim"], old: Rows, new: Rows) -> Rows:
    """Return the goals g for which W g is W new less its projection on the unit vector along W old."""
    before, after = old.double() @ weight.T, new.double() @ weight.T
    return new.double() - (before * after).sum() / before.square().sum() * old.double()  # u = W old / ‖W old‖_F
