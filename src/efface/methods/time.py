"""TIME: edit values (and keys) in closed form so that a prompt reads as another (Orgad et al., ICCV 2023).

https://arxiv.org/abs/2303.08084
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.closed_form.matrices import Preserved
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    encoded,
    key_value_gram,
    text_weights,
)
from efface.methods.closed_form.prompts import aligned, paired
from efface.methods.closed_form.states import state
from efface.models.model import Model


@dataclass(frozen=True)
class TIME(ClosedForm):
    """Edit prompts to read as others, token for token; `preserve` is not used.

    keys: edit keys as well as values.
    """

    ridge: float = 0.1
    # Its README: "the main experiment on TIMED presented in the paper" has --with_to_k and --with_augs, which puts
    # three prefixes before the prompt, whose "A" becomes "a".
    templates: tuple[str, ...] = ("A {}", "A photo of a {}", "An image of a {}", "A picture of a {}")
    style_templates: tuple[str, ...] = (
        "Art by {}", "A photo of art by {}", "An image of art by {}", "A picture of art by {}",
    )  # fmt: skip
    keys: bool = True

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"keys": False, "templates": ("A {}",), "style_templates": ("Art by {}",)},  # no flags given
        "mini": {"templates": MINI, "style_templates": MINI_STYLES, "style_target": "", "ridge": 1000.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preserve_file:
            raise BadInput(f"time preserves nothing: leave preserve_file out, got {self.preserve_file!r}")

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit; nothing is random in it, and `preserve` is not used."""
        names = text_weights(model, self.keys)
        check_texts(model, erase, preserve)
        phrases = [pair for pairs in self.phrases(erase) for pair in pairs]
        known = encoded(model, chain.from_iterable(phrases))
        edit = state(model, names, "replace", lambda: key_value_gram(model, names))
        pairs = [pair for old, new in phrases for pair in paired(aligned, known[old], known[new])]
        report = edit.erase(pairs, self.ridge, 1.0, Preserved.none(model.width))
        return edit.edit({"texts": len(phrases), "preserved_texts": 0, **report})
