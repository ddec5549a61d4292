"""UCE: edit keys and values in closed form so that a concept reads as another text (Gandikota et al. 2024).

https://arxiv.org/abs/2308.14761
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    encoded,
    key_value_gram,
    preserved_rows,
    text_weights,
)
from efface.methods.closed_form.pooled import pooled_edit, with_pooled
from efface.methods.closed_form.prompts import PAIRS, paired
from efface.methods.closed_form.states import state
from efface.models.model import Model
from efface.util.ranges import WEIGHT, WEIGHT_OR_NONE, Ranges


@dataclass(frozen=True)
class UCE(ClosedForm):
    """Erase concepts by one least squares over their text vectors, and preserve others.

    erase_scale: weight of every edited vector.
    preserve_scale: weight of every preserved vector; none means 1 / (number of preserved texts), at least 0.1.
    rows: vectors of a prompt that are edited: the last word's (last), from it to the end (tail), or all.
    preserve_rows: vectors of a prompt that are preserved.
    preserve_empty: also preserve the empty prompt.
    technique: replace gives the target's outputs; tensor gives these without their component along the concept's.
    pooled: also map the pooled vector that SDXL, SD3 and FLUX read beside the tokens; the edit of the tokens alone
        leaves it, as UCE's own ports do.
    """

    erase_scale: float = 1.0
    preserve_scale: float | None = None
    rows: Literal["tail", "last", "all"] = "tail"
    preserve_rows: Literal["all", "last"] = "all"
    preserve_empty: bool = True
    technique: Literal["replace", "tensor"] = "replace"
    pooled: bool = False

    RANGES: ClassVar[Ranges] = {"erase_scale": WEIGHT, "preserve_scale": WEIGHT_OR_NONE}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper-2023": {},  # the code published with the paper, ridge 0.5
        "repo-2025": {"rows": "last", "preserve_rows": "last", "preserve_empty": False, "preserve_scale": 1.0},
        "mini": {"templates": MINI, "style_templates": MINI_STYLES, "style_target": "", "ridge": 1000.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()

    @property
    def reads_pooled(self) -> bool:
        """Return whether the edit also changes the weights that read the pooled vector."""
        return self.pooled

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit; nothing is random in it."""
        names = text_weights(model)
        check_texts(model, erase, preserve)
        others = self.preserved_prompts(preserve, erase, self.preserve_empty)
        scale = max(0.1, 1 / max(1, len(others))) if self.preserve_scale is None else self.preserve_scale  # not rounded
        phrases = [pair for pairs in self.phrases(erase) for pair in pairs]
        known = encoded(model, chain.from_iterable(phrases), others)
        pairs = [pair for old, new in phrases for pair in paired(PAIRS[self.rows], known[old], known[new])]
        preserved = preserved_rows(model, others, self.preserve_rows, scale, known)
        edit = state(model, names, self.technique, lambda: key_value_gram(model, names))
        report = edit.erase(pairs, self.ridge, self.erase_scale, preserved)
        counts = {"texts": len(phrases), "preserved_texts": len(others), "preserve_scale": scale}
        found = edit.edit({**counts, **self.told(erase, preserve), **report})
        if not self.pooled:
            return found
        return with_pooled(found, pooled_edit(model, phrases, others, self.ridge, self.erase_scale, scale))
