"""RECE: after UCE, derive the vectors that bring a concept back and erase them too (Gong et al., ECCV 2024).

https://arxiv.org/abs/2407.12383
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.judge import Judge, judge_of
from efface.methods.closed_form.matrices import Preserved
from efface.methods.closed_form.method import (
    EMPTY,
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    encoded,
    key_value_gram,
    preserved_rows,
    text_weights,
)
from efface.methods.closed_form.prompts import PAIRS, Encoded, Pair, paired, tail
from efface.methods.closed_form.states import State, state
from efface.models.model import Model
from efface.query import Query
from efface.util.ranges import COUNT, OR_NONE, WEIGHT, WEIGHT_OR_NONE, Ranges


class Settings(NamedTuple):
    """Hold what depends on the kind of concept: epochs, λ of eq. 7, λ₁ of the UCE edit, copies of the empty prompt."""

    epochs: int
    ridge: float
    first_preserve_scale: float = 0.1
    empty: Literal["once", "each"] = "once"


# Paper: section 4; nudity ran 5 epochs (0 to 4), and "we select the checkpoint after epoch 2", that is three; objects
# are in its code only. Code: the notes of its README; λ₁ is in the names of its UCE checkpoints, and train.py (unsafe)
# keeps [' ' for _ in old_texts], where train_artists.py and train_object.py keep one ''.
SETTINGS: dict[str, dict[str, Settings]] = {
    "paper": {
        "unsafe": Settings(3, 0.1),
        "style": Settings(10, 1e-3),
        "object": Settings(1, 0.1),
        "identity": Settings(1, 0.1),
    },
    "repo": {
        "unsafe": Settings(3, 0.1, 1.0, "each"),
        "style": Settings(1, 1e-3),
        "object": Settings(1, 0.1, 1.0),
        "identity": Settings(1, 0.1, 1.0),
    },
}
HARD = ("church", "garbage truck")  # "Difficult objects for UCE": λ 1e-3
HARD_RIDGE = 1e-3


class Source(NamedTuple):
    """Hold one prompt of a concept and its replacement, encoded, and the settings to derive with.

    label: the concept's name for the first of its prompts, "" for the others.
    """

    concept: Concept
    label: str
    old: Encoded
    new: Encoded
    settings: Settings

    @property
    def lengths(self) -> list[int]:
        """Return the number of rows of each stream of tokens."""
        return [len(text.vectors) for text in self.old]

    def side(self, which: Literal["old", "new"]) -> Tensor:
        """Return all rows of the prompt, or of its replacement."""
        return torch.cat([text.vectors for text in getattr(self, which)])

    def replaced(self, rows: Tensor) -> Encoded:
        """Return the prompt with other rows."""
        parts = rows.split(self.lengths)
        return tuple(text._replace(vectors=part) for text, part in zip(self.old, parts, strict=True))


@dataclass(frozen=True)
class RECE(ClosedForm):
    """Erase concepts with UCE, then repeatedly erase the vectors that would bring them back.

    ridge: λ₂ of eq. 2 in every epoch.
    preserve_scale: λ₁ of eq. 2 in every epoch.
    erase_scale: weight of every erased vector.
    preserve_empty: how often an epoch preserves the empty prompt: once, or each (once for each concept); by default
        as the schedule has it for the kind of concept.
    start: the edit that the epochs start from: uce, or none.
    first_ridge: λ₂ of that edit.
    first_preserve_scale: λ₁ of that edit; by default as the schedule has it, the largest of several kinds.
    schedule: source of the defaults that depend on the kind of concept.
    epochs: how often to derive and erase.
    derive_ridge: λ of eq. 7; 0 is eq. 5, whose vectors undo the edit exactly.
    regularizer: what λ of eq. 7 pulls the derived vectors to: zero (the paper), standard (the target's vectors), or
        the surrogates of the code: 1st (their current outputs to the concept's), 2nd (the concept's vectors) or both.
    technique: replace gives the target's outputs; tensor gives these without their component along the erased ones.
    goals: outputs that erased and preserved vectors should give: those of the original weights (eq. 3) or the current.
    rows: derived vectors that are erased: from the concept's last word to the end (tail), or all.
    own_vectors: solve again for the vectors of the concept's own prompts in every epoch, so that they stay erased; the
        paper leaves this to the ridge.
    stop_below: stop when the judged share of images that show the concept falls below this; 0 never does.
    stop_images: images generated from each derived embedding for `stop_below`.
    judge: the judge for `stop_below`: one of the model's own, or one of any model, such as nudenet.
    """

    ridge: float = 0.1
    preserve_scale: float = 0.1
    erase_scale: float = 1.0
    preserve_empty: Literal["once", "each"] | None = None
    start: Literal["uce", "none"] = "uce"
    first_ridge: float = 0.1
    first_preserve_scale: float | None = None
    schedule: Literal["paper", "repo"] = "paper"
    epochs: int | None = None
    derive_ridge: float | None = None
    regularizer: Literal["zero", "standard", "1st", "2nd", "both"] = "zero"
    technique: Literal["replace", "tensor"] = "replace"
    goals: Literal["original", "current"] = "original"
    rows: Literal["tail", "all"] = "tail"
    own_vectors: bool = False
    stop_below: float = 0.0
    stop_images: int = 8
    judge: str = ""

    RANGES: ClassVar[Ranges] = {
        "preserve_scale": WEIGHT_OR_NONE, "erase_scale": WEIGHT, "first_ridge": WEIGHT,
        "first_preserve_scale": WEIGHT_OR_NONE, "epochs": OR_NONE, "derive_ridge": WEIGHT_OR_NONE,
        "stop_below": WEIGHT_OR_NONE, "stop_images": COUNT,
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"first_ridge": 0.5, "schedule": "repo", "goals": "current", "rows": "all"},
        # the eleven concepts of I2P at once: "unsafe concepts for 2 epochs"
        "repo-i2p": {"first_ridge": 0.5, "schedule": "repo", "goals": "current", "rows": "all", "epochs": 2},
        # famous artists are run with --target_ckpt '': no UCE edit comes first
        "repo-scratch": {"start": "none", "schedule": "repo", "goals": "current", "rows": "all"},
        "mini": {
            "templates": MINI,
            "style_templates": MINI_STYLES,
            "style_target": "",
            "epochs": 1,
            "derive_ridge": 0.1,
            "own_vectors": True,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.technique == "tensor" and self.own_vectors:
            raise BadInput("own_vectors needs the technique replace: tensor would erase the concept's own outputs")
        if self.judge and not self.stop_below:
            raise BadInput(f"the judge {self.judge!r} is asked only when stop_below is above 0")
        if self.start == "none" and self.epochs == 0:
            raise BadInput("nothing is erased without the UCE edit and with 0 epochs")

    @property
    def generates(self) -> bool:
        """Return whether a judge looks at images."""
        return self.stop_below > 0

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit (algorithm 1); `seed` is used only for the images of `stop_below`."""
        names = text_weights(model)
        check_texts(model, erase, preserve)
        judge = self._judge(model, erase)
        phrases = self.phrases(erase)
        others = self.preserved_prompts(preserve, erase, empty=False)
        known = encoded(model, chain(chain.from_iterable(chain.from_iterable(phrases)), [EMPTY]), others)
        sources = [
            Source(concept, "" if i else concept.name, known[old], known[new], self._settings(concept))
            for concept, pairs in zip(erase, phrases, strict=True)
            for i, (old, new) in enumerate(pairs)
        ]
        empty, kept = (preserved_rows(model, texts, "all", 1.0, known) for texts in ([EMPTY], others))
        weights = state(model, names, self.technique, lambda: key_value_gram(model, names))
        report: dict[str, Any] = {"texts": len(sources), "preserved_texts": 1 + len(others)}
        report |= self.told(erase, preserve)
        if self.start == "uce":
            scale = max(one.settings.first_preserve_scale for one in sources)
            preserved = empty.joined(kept).rescaled(scale)
            pairs = [pair for one in sources for pair in paired(tail, one.old, one.new)]
            report["first"] = weights.erase(pairs, self.first_ridge, self.erase_scale, preserved)
        reports: list[dict[str, float]] = []
        extra: dict[str, Tensor] = {}
        for epoch in range(max(one.settings.epochs for one in sources)):
            now = [one for one in sources if epoch < one.settings.epochs]
            derived = self._derived(now, weights)
            extra |= {f"derived.{epoch}.{o.label}": d.float() for o, d in zip(now, derived, strict=True) if o.label}
            if judge is not None:
                shown = self._shown(model, judge, weights.edit({}), now, derived, seed)
                report["shown"] = [*report.get("shown", []), round(shown, 4)]
                if shown < self.stop_below:
                    break
            reports.append(self._erase(weights, now, derived, empty, kept))
        return weights.edit({**report, "epochs": reports}, extra)

    def _settings(self, concept: Concept) -> Settings:
        """Return the schedule's settings for a concept, with the fields that are given in their place."""
        found = SETTINGS[self.schedule][concept.kind]
        if concept.kind == "object" and concept.name.strip().casefold() in HARD:
            found = found._replace(ridge=HARD_RIDGE)
        given = {
            "epochs": self.epochs,
            "ridge": self.derive_ridge,
            "first_preserve_scale": self.first_preserve_scale,
            "empty": self.preserve_empty,
        }
        return found._replace(**{name: value for name, value in given.items() if value is not None})

    def _derived(self, now: Sequence[Source], weights: State) -> list[Float64[Tensor, "len dim"]]:
        """Return, for each prompt, the embedding that brings its concept back under the current edit."""
        found: dict[int, Tensor] = {}
        for ridge in {one.settings.ridge for one in now}:
            group = [i for i, one in enumerate(now) if one.settings.ridge == ridge]
            rows, targets = (torch.cat([now[i].side(which) for i in group]) for which in ("old", "new"))
            rows = weights.derived(rows, ridge, self.regularizer, targets)
            found |= dict(zip(group, rows.split([sum(now[i].lengths) for i in group]), strict=True))
        return [found[i] for i in range(len(now))]

    def _erase(
        self, weights: State, now: Sequence[Source], derived: Sequence[Tensor], empty: Preserved, kept: Preserved
    ) -> dict[str, float]:
        """Erase the derived vectors around the current weights (eq. 3), and return the epoch's report."""
        pair, current = PAIRS[self.rows], self.goals == "current"
        pairs: list[Pair] = [
            rows for o, d in zip(now, derived, strict=True) for rows in paired(pair, o.replaced(d), o.new)
        ]
        if self.own_vectors:
            own = [rows for one in now for rows in paired(tail, one.old, one.new)]
            pairs += [(rows, rows) for rows, _ in own] if current else own
        copies = sum(bool(one.label) and one.settings.empty == "each" for one in now)
        preserved = empty.rescaled(float(max(1, copies))).joined(kept).rescaled(self.preserve_scale)
        report = weights.erase(pairs, self.ridge, self.erase_scale, preserved, current)
        return {**report, "norm": round(float(torch.cat(list(derived)).norm(dim=1).mean()), 2)}

    def _judge(self, model: Model, erase: Sequence[Concept]) -> Judge | None:
        """Return the judge of `stop_below`, if any; raises `UnknownName` for a concept that it does not know."""
        if not self.generates:
            return None
        judge = judge_of(model.name, self.judge)
        for concept in erase:
            judge.index(concept.name, "style" if concept.kind == "style" else "object")
        return judge

    def _shown(
        self, model: Model, judge: Judge, edit: Edit, now: Sequence[Source], derived: Sequence[Tensor], seed: int
    ) -> float:
        """Return the largest share of images, over concepts, in which a derived embedding shows its concept."""
        shares = []
        with edit.applied(model) as edited:
            for one, embeds in zip(now, derived, strict=True):
                if one.label:
                    text = one.concept.texts[0]
                    tokens = model.encode([text]).tokens.float().clone()
                    tokens[0, : len(embeds)] = embeds.to(tokens)
                    queries = [Query(text, seed=seed + i, context=Context(tokens)) for i in range(self.stop_images)]
                    shares.append(presence(judge, one.concept, edited.generate(queries)))
        return max(shares)


def presence(judge: Judge, concept: Concept, images: Tensor) -> float:
    """Return the share of images whose first judged name is the concept; raises `UnknownName` if there is none."""
    kind: Literal["object", "style"] = "style" if concept.kind == "style" else "object"
    column = judge.index(concept.name, kind)
    probabilities = judge.probabilities(images.float().to(judge.device), kind)
    return float((probabilities.argmax(1) == column).float().mean())
