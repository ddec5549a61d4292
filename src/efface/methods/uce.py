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
from efface.methods.closed_form.matrices import Kept, check_scale
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    edited_rows,
    joined,
    kept_rows,
    summary,
    text_edit,
    text_weights,
)
from efface.methods.closed_form.prompts import PAIRS, Rows
from efface.models.model import Model


@dataclass(frozen=True)
class UCE(ClosedForm):
    """Erase concepts by one least squares over their text vectors, keeping others.

    erase_scale: weight of every edited vector.
    preserve_scale: weight of every kept vector; none means 1 / (number of kept texts), at least 0.1.
    rows: vectors of a prompt that are edited: the last word's (last), from it to the end (tail), or all.
    keep_rows: vectors of a prompt that are kept.
    keep_empty: keep the empty prompt too.
    technique: replace gives the target's values; tensor gives them less their component along the concept's.
    """

    erase_scale: float = 1.0
    preserve_scale: float | None = None
    rows: Literal["tail", "last", "all"] = "tail"
    keep_rows: Literal["all", "last"] = "all"
    keep_empty: bool = True
    technique: Literal["replace", "tensor"] = "replace"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper-2023": {},  # the code published with the paper, ridge 0.5
        "repo-2025": {"rows": "last", "keep_rows": "last", "keep_empty": False, "preserve_scale": 1.0},
        "mini": {"templates": MINI, "style_templates": MINI_STYLES, "style_target": "", "ridge": 100.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("erase_scale", self.erase_scale, positive=True)
        if self.preserve_scale is not None:
            check_scale("preserve_scale", self.preserve_scale)

    def fit(self, model: Model, erase: Sequence[Concept], keep: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit; nothing is random in it."""
        names = text_weights(model)
        check_texts(model, erase, keep)
        held = self.kept_says(keep, erase, self.keep_empty)
        scale = max(0.1, 1 / max(1, len(held))) if self.preserve_scale is None else self.preserve_scale
        kept = kept_rows(model, held, self.keep_rows, scale)
        said = [pair for says in self.says(erase) for pair in says]
        pairs = list(edited_rows(model, said, PAIRS[self.rows]))
        report = {"texts": len(said), "kept_texts": len(held), "preserve_scale": scale}
        if self.technique == "tensor":
            return self._tensor(model, names, pairs, kept, report)
        fit = solve(*joined(pairs), self.ridge, self.erase_scale, kept)
        return text_edit(names, fit.step, {**report, **summary(fit)})

    def _tensor(
        self,
        model: Model,
        names: Sequence[str],
        pairs: list[tuple[Tensor, Tensor]],
        kept: Kept,
        report: dict[str, Any],
    ) -> Edit:
        """Solve for each matrix by itself: its targets lose their part along the concept's own values."""
        delta: dict[str, Tensor] = {}
        for name, weight in model.weights().items():
            if name in names:
                wide = weight.detach().cpu().double()
                own = [(old, _without(wide, old, new)) for old, new in pairs]
                step = solve(*joined(own), self.ridge, self.erase_scale, kept).step
                delta[name] = ((wide @ step.left) @ step.right).float()
        return Edit(delta=delta, meta={"closed_form": report})


def _without(weight: Float[Tensor, "out dim"], old: Rows, new: Rows) -> Rows:
    """Return the goals g for which W g is W new less its projection on the unit vector along W old."""
    before, after = old.double() @ weight.T, new.double() @ weight.T
    return new.double() - (before * after).sum() / before.square().sum() * old.double()  # u = W old / ‖W old‖_F
