"""TIME: edit values (and keys) in closed form so that a prompt reads as another (Orgad et al., ICCV 2023).

https://arxiv.org/abs/2303.08084
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.methods.closed_form.least_squares import solve
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    edited_rows,
    joined,
    summary,
    text_edit,
    text_weights,
)
from efface.methods.closed_form.prompts import aligned
from efface.models.model import Model


@dataclass(frozen=True)
class TIME(ClosedForm):
    """Edit prompts to read as others, token for token; `preserve` is not used.

    keys: edit keys as well as values.
    """

    ridge: float = 0.1
    templates: tuple[str, ...] = ("A {}",)
    style_templates: tuple[str, ...] = ("Art by {}",)
    keys: bool = True

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"keys": False},  # the default of its command line; its own example turns keys on
        "augmented": {"templates": ("A {}", "A photo of a {}", "An image of a {}", "A picture of a {}")},
        "mini": {"templates": MINI, "style_templates": MINI_STYLES, "style_target": "", "ridge": 100.0},
    }

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit; nothing is random in it, and `preserve` is not used."""
        names = text_weights(model, self.keys)
        check_texts(model, erase, preserve)
        phrases = [pair for pairs in self.phrases(erase) for pair in pairs]
        pairs = list(edited_rows(model, phrases, aligned))
        fit = solve(*joined(pairs), self.ridge)
        return text_edit(names, fit.step, {"texts": len(phrases), "preserved_texts": 0, **summary(fit)})
