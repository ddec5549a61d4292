"""What closed-form methods share: prompts of concepts, preserved vectors, and the edit they return."""

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.parts import TextMap
from efface.errors import BadInput, BadModel
from efface.method import Method
from efface.methods.closed_form.cache import remembered
from efface.methods.closed_form.least_squares import Fit
from efface.methods.closed_form.matrices import Factors, Preserved, check_scale, weight_gram
from efface.methods.closed_form.prompts import Phrase, Rows, Text, check_template, read
from efface.models.model import Model
from efface.util.files import sha256_tensors, sha256_text

# Prompts like the captions the embedded model learned from: its vectors change with every word around a name.
MINI = (
    "{}", "a {}", "a picture of a {}", "a photo of a {}", "a {} in the style of ink", "a painting of a {} by neon",
    "a picture of a {} in the style of blueprint", "a {} by sketch", "a drawing of a {} in pixel style",
    "{} in poster style",
)  # fmt: skip
MINI_STYLES = (
    "{}", "art by {}", "art in the style of {}", "{} style", "a church in the style of {}", "a painting of a dog by {}",
    "a picture of a car in the style of {}", "a guitar by {}", "a drawing of a house in {} style", "fish in {} style",
)  # fmt: skip
SINGLE = 3e-8  # half a unit in the last place of float32: smaller singular values would be lost anyway
MANY = 64  # preserved texts from which their Gram matrix is worth caching


@dataclass(frozen=True)
class ClosedForm(Method):
    """Base class of closed-form methods: concepts and their replacements in the same prompts.

    ridge: λ, the weight of the change of the matrices, above 0.
    templates: prompts with {} for the concept's name; all of them are edited.
    style_templates: the same for styles.
    target: replacement of a concept that has no anchor.
    style_target: the same for styles.
    keywords: also erase a concept's keywords, each as if it were its name.
    """

    ridge: float = 0.5
    templates: tuple[str, ...] = ("{}",)
    style_templates: tuple[str, ...] = ("{}",)
    target: str = ""
    style_target: str = "art"
    keywords: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("ridge", self.ridge, positive=True)
        for template in (*self.templates, *self.style_templates):
            check_template(template)
        if not self.templates or not self.style_templates:
            raise BadInput("at least one template is needed")

    @abstractmethod
    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit."""

    def phrases(self, erase: Sequence[Concept]) -> list[list[tuple[Phrase, Phrase]]]:
        """Return, for every concept to be erased, pairs of a prompt and its replacement."""
        named = self._named(erase)
        return [self._phrases(concept, named) for concept in erase]

    def preserved_prompts(self, preserve: Sequence[Concept], erase: Sequence[Concept], empty: bool) -> list[Phrase]:
        """Return every prompt to preserve, with the empty one first if `empty`."""
        named = self._named(erase)
        found = [Phrase(form, concept.name) for concept in preserve for form in self._forms(concept, named)]
        return [Phrase("{}", ""), *found] if empty else found

    def _phrases(self, concept: Concept, named: Mapping[str, list[Concept]]) -> list[tuple[Phrase, Phrase]]:
        target = concept.anchor or (self.style_target if concept.kind == "style" else self.target)
        names = (concept.name, *(concept.keywords if self.keywords else ()))
        return [
            (Phrase(form, name), Phrase(form, target))
            for name in names
            for form in self._forms(concept, named, concept)
        ]

    def _named(self, erase: Sequence[Concept]) -> dict[str, list[Concept]]:
        """Return, for each template, the concepts to be erased that its own words name."""
        forms = dict.fromkeys((*self.templates, *self.style_templates))
        words = [(concept, re.compile(rf"\b{re.escape(concept.name)}\b", re.IGNORECASE)) for concept in erase]
        return {form: [concept for concept, word in words if word.search(form)] for form in forms}

    def _forms(self, concept: Concept, named: Mapping[str, list[Concept]], itself: Concept | None = None) -> list[str]:
        """Return a concept's templates without those that name a concept to be erased, other than `itself`."""
        forms = self.style_templates if concept.kind == "style" else self.templates
        return [form for form in forms if all(other == itself for other in named[form])] or ["{}"]


def text_weights(model: Model, keys: bool = True) -> tuple[str, ...]:
    """Return the names of the value (and key) matrices that read the text; raises `BadModel` without any."""
    names = tuple(n for n in model.text_weights() if keys or n.endswith(".to_v.weight"))
    if not names:
        raise BadModel(
            f"{model.name or 'this model'} has no weights whose only input is the text: there is nothing to edit"
        )
    weights = model.weights()
    wrong = [n for n in names if weights[n].shape[1] != model.width]
    if wrong:
        raise BadModel(f"{wrong[0]} reads {weights[wrong[0]].shape[1]} channels, not the text's {model.width}")
    return names


def check_texts(model: Model, erase: Sequence[Concept], preserve: Sequence[Concept]) -> None:
    """Raise `BadInput` when two concepts are the same text to the tokenizer, or one has no tokens."""
    seen: dict[tuple[int, ...], str] = {}
    for concept in (*erase, *preserve):
        tokens = model.tokens(concept.name)
        if tokens.subject < 1:
            raise BadInput(f"{concept.name!r} has no tokens in this model's vocabulary")
        other = seen.setdefault(tokens.ids, concept.name)
        if other != concept.name:
            raise BadInput(f"{other!r} and {concept.name!r} are the same text to this model: name it once")


def edited_rows(
    model: Model, phrases: Sequence[tuple[Phrase, Phrase]], pair: Callable[[Text, Text], tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows, goals) for every prompt and its replacement; each replacement is encoded once."""
    targets = list(dict.fromkeys(new for _, new in phrases))
    known = dict(zip(targets, read(model, targets), strict=True))
    for (_, new), old in zip(phrases, read(model, [old for old, _ in phrases]), strict=True):
        yield pair(old, known[new])


def joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Rows, Rows]:
    """Concatenate the rows and the goals of all pairs."""
    return torch.cat([rows for rows, _ in pairs]), torch.cat([goals for _, goals in pairs])


def preserved_rows(model: Model, phrases: Sequence[Phrase], which: str, scale: float) -> Preserved:
    """Encode the preserved prompts: all rows of each (which = "all") or the last word's; long lists are cached."""
    check_scale("preserve_scale", scale)

    def batches() -> Iterator[Tensor]:
        for text in read(model, phrases):
            yield text.vectors if which == "all" else text.vectors[text.word :][:1]

    if len(phrases) < MANY:
        return Preserved.gather(batches(), model.width, scale)
    encoders = {name: weight for name, weight in model.weights("").items() if name.startswith("text_encoder")}
    key = sha256_text(json.dumps([sha256_tensors(encoders), which, [phrase._asdict() for phrase in phrases]]))
    total = remembered(key, lambda: Preserved.gather(batches(), model.width).matrix(), disk=True)
    return Preserved(torch.zeros(0, model.width, dtype=torch.float64), scale * total)


def key_value_gram(model: Model, names: Sequence[str]) -> Tensor:
    """Return G = Σ W₀ᵀW₀ over the named matrices, cached by their values."""
    weights = model.weights()
    chosen = {name: weights[name] for name in names}
    return remembered(sha256_tensors(chosen), lambda: weight_gram(chosen.values()))


def text_edit(
    names: tuple[str, ...],
    change: Factors,
    report: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> Edit:
    """Return the edit W = W₀·T of the named weights, with T in float32 factors and the report in its provenance."""
    small = change.compressed(SINGLE)
    text_map = TextMap(names, small.left.float().contiguous(), small.right.float().contiguous())
    meta = {"closed_form": {**report, "rank": small.left.shape[1]}}
    return Edit(maps=(text_map,), meta=meta, extra=dict(extra or {}))


def summary(fit: Fit) -> dict[str, float]:
    """Return the quality of a solution, rounded for the provenance."""
    return {key: float(f"{getattr(fit, key):.4g}") for key in ("residual", "drift", "condition")}
