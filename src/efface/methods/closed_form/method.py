"""What closed-form methods share: prompts of concepts, preserved vectors, and the edit they return."""

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadFile, BadInput, BadModel
from efface.method import Method
from efface.methods.closed_form.cache import remembered
from efface.methods.closed_form.matrices import Preserved, check_scale, weight_gram
from efface.methods.closed_form.prompts import Encoded, Phrase, check_template, read
from efface.models.model import Model
from efface.util.files import sha256_tensors, sha256_text
from efface.util.ranges import WEIGHT, Ranges

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
EMPTY = Phrase("{}", "")
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
    preserve_file: a text file of names to preserve too, one a line; those that are erased are left out, and # begins a
        comment.
    """

    ridge: float = 0.5
    templates: tuple[str, ...] = ("{}",)
    style_templates: tuple[str, ...] = ("{}",)
    target: str = ""
    style_target: str = "art"
    keywords: bool = False
    preserve_file: str = ""

    RANGES: ClassVar[Ranges] = {"ridge": WEIGHT}

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in (*self.templates, *self.style_templates):
            check_template(template)
        if not self.templates or not self.style_templates:
            raise BadInput("at least one template is needed")
        if self.preserve_file:
            read_names(self.preserve_file)

    @abstractmethod
    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit."""

    @property
    def generates(self) -> bool:
        """Return whether computing the edit generates images, for which the whole model is needed."""
        return False

    @property
    def reads_pooled(self) -> bool:
        """Return whether the edit also changes the weights that read the pooled vector."""
        return False

    def phrases(self, erase: Sequence[Concept]) -> list[list[tuple[Phrase, Phrase]]]:
        """Return, for every concept to be erased, pairs of a prompt and its replacement."""
        named = self._named(erase)
        return [self._phrases(concept, named) for concept in erase]

    def preserved_prompts(self, preserve: Sequence[Concept], erase: Sequence[Concept], empty: bool) -> list[Phrase]:
        """Return every prompt to preserve, with the empty one first if `empty`."""
        named = self._named(erase)
        kept = (*preserve, *self.listed(erase, preserve))
        found = [Phrase(form, concept.name) for concept in kept for form in self._forms(concept, named)]
        return [EMPTY, *found] if empty else found

    def listed(self, erase: Sequence[Concept], preserve: Sequence[Concept]) -> list[Concept]:
        """Return the concepts of `preserve_file` that are neither erased nor named twice, of the first one's kind."""
        if not self.preserve_file:
            return []
        known = {concept.name.casefold() for concept in (*erase, *preserve)}
        names = dict.fromkeys(read_names(self.preserve_file))
        return [Concept(name, kind=erase[0].kind) for name in names if name.casefold() not in known]

    def told(self, erase: Sequence[Concept], preserve: Sequence[Concept]) -> dict[str, Any]:
        """Return what an edit's provenance says of the names in `preserve_file`: how many, and a hash; {} for none."""
        names = [concept.name for concept in self.listed(erase, preserve)]
        return {"preserve_file": {"names": len(names), "sha256": sha256_text("\n".join(names))}} if names else {}

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
    every = model.text_weights()
    names = tuple(n for n in every if keys or n.endswith(".to_v.weight"))
    if every and not names:
        raise BadModel(
            f"{model.name or 'this model'} ({model.family.TITLE}) has no value matrices that read the text alone: edit "
            "the keys as well (keys = true)"
        )
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
        if tokens.subject < tokens.first:
            raise BadInput(f"{concept.name!r} has no tokens in this model's vocabulary")
        other = seen.setdefault(tokens.ids, concept.name)
        if other != concept.name:
            raise BadInput(f"{other!r} and {concept.name!r} are the same text to this model: name it once")


def encoded(model: Model, phrases: Iterable[Phrase], others: Sequence[Phrase] = ()) -> dict[Phrase, Encoded]:
    """Encode prompts, each once; others: preserved prompts, which are left out where they are many."""
    every = list(dict.fromkeys(chain(phrases, others if len(others) < MANY else ())))
    return dict(zip(every, read(model, every), strict=True))


def read_names(path: str) -> list[str]:
    """Read a text file with a name on each line; raises `BadFile`, and `BadInput` when it has none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
        raise BadFile(f"cannot read the names in {path}: {error}") from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise BadInput(f"{path} has no names: write one on each line")
    return names


def preserved_rows(
    model: Model, phrases: Sequence[Phrase], which: str, scale: float, known: Mapping[Phrase, Encoded] | None = None
) -> Preserved:
    """Encode the preserved prompts: all rows of each (which = "all") or the last word's; long lists are cached.

    known: prompts that need not be encoded again.
    """
    check_scale("preserve_scale", scale)
    found = known or {}

    def batches() -> Iterator[Tensor]:
        have = (found[phrase] for phrase in phrases if phrase in found)
        rest = read(model, [phrase for phrase in phrases if phrase not in found])
        for text in chain.from_iterable(chain(have, rest)):
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
