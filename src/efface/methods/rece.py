"""RECE: after UCE, derive the vectors that bring a concept back and erase them too (Gong et al., ECCV 2024).

https://arxiv.org/abs/2407.12383
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput, unknown
from efface.methods.closed_form.least_squares import Fit, derive, solve, undo
from efface.methods.closed_form.matrices import Factors, Outputs, Preserved, check_scale
from efface.methods.closed_form.method import (
    MINI,
    MINI_STYLES,
    ClosedForm,
    check_texts,
    joined,
    key_value_gram,
    preserved_rows,
    summary,
    text_edit,
    text_weights,
)
from efface.methods.closed_form.prompts import PAIRS, Phrase, Text, read, tail
from efface.models.model import Model
from efface.query import Query

# Epochs and λ of eq. 7. Paper: section 4 (object: its code). Code: the commands of its README.
SCHEDULES: dict[str, dict[str, tuple[int, float]]] = {
    "paper": {"unsafe": (5, 0.1), "style": (10, 1e-3), "object": (1, 0.1), "identity": (1, 0.1)},
    "repo": {"unsafe": (3, 0.1), "style": (1, 1e-3), "object": (1, 0.1), "identity": (1, 0.1)},
}


class Source(NamedTuple):
    """Hold one prompt of a concept and its replacement, encoded, and the settings to derive with.

    label: the concept's name for the first of its prompts, "" for the others.
    """

    concept: Concept
    label: str
    old: Text
    new: Text
    epochs: int
    ridge: float


@dataclass(frozen=True)
class RECE(ClosedForm):
    """Erase concepts with UCE, then repeatedly erase the vectors that would bring them back.

    ridge: λ₂ of eq. 2 in every epoch.
    preserve_scale: λ₁ of eq. 2 in every epoch.
    erase_scale: weight of every erased vector.
    first_ridge: λ₂ of the UCE edit it starts from.
    first_preserve_scale: λ₁ of the UCE edit it starts from.
    schedule: source of the default epochs and derive_ridge for each kind of concept.
    epochs: how often to derive and erase.
    derive_ridge: λ of eq. 7; 0 is eq. 5, whose vectors undo the edit exactly.
    goals: outputs that erased and preserved vectors should give: those of the original weights (eq. 3) or the current.
    rows: derived vectors that are erased: from the concept's last word to the end (tail), or all.
    own_vectors: solve again for the vectors of the concept's own prompts in every epoch, so that they stay erased; the
        paper leaves this to the ridge.
    stop_below: stop when the judged share of images that show the concept falls below this; 0 never does.
    stop_images: images generated from each derived embedding for `stop_below`.
    """

    ridge: float = 0.1
    preserve_scale: float = 0.1
    erase_scale: float = 1.0
    first_ridge: float = 0.1
    first_preserve_scale: float = 0.1
    schedule: Literal["paper", "repo"] = "paper"
    epochs: int | None = None
    derive_ridge: float | None = None
    goals: Literal["original", "current"] = "original"
    rows: Literal["tail", "all"] = "tail"
    own_vectors: bool = False
    stop_below: float = 0.0
    stop_images: int = 8

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {
            "first_ridge": 0.5,
            "first_preserve_scale": 1.0,
            "schedule": "repo",
            "goals": "current",
            "rows": "all",
        },
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
        check_scale("first_ridge", self.first_ridge, positive=True)
        check_scale("erase_scale", self.erase_scale, positive=True)
        for name in ("preserve_scale", "first_preserve_scale", "stop_below"):
            check_scale(name, getattr(self, name))
        if self.derive_ridge is not None:
            check_scale("derive_ridge", self.derive_ridge)
        if self.stop_images < 1 or (self.epochs is not None and self.epochs < 0):
            raise BadInput("epochs must be at least 0 and stop_images at least 1")

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit (algorithm 1); `seed` is used only for the images of `stop_below`."""
        names = text_weights(model)
        check_texts(model, erase, preserve)
        system = key_value_gram(model, names)
        prompts = zip(erase, self.phrases(erase), strict=True)
        sources = [one for concept, phrases in prompts for one in self._read(model, concept, phrases)]
        others = self.preserved_prompts(preserve, erase, empty=True)
        preserved = preserved_rows(model, others, "all", 1.0)
        first = solve(
            *joined([tail(one.old, one.new) for one in sources]),
            self.first_ridge,
            self.erase_scale,
            preserved.rescaled(self.first_preserve_scale),
        )
        change, reports = first.step, []
        outputs = Outputs.of(system).plus(first.step, system)
        report: dict[str, Any] = {"texts": len(sources), "preserved_texts": len(others), "first": summary(first)}
        extra: dict[str, Tensor] = {}
        for epoch in range(max(one.epochs for one in sources)):
            now = [one for one in sources if epoch < one.epochs]
            derived = self._derived(now, outputs, change)
            extra |= {f"derived.{epoch}.{o.label}": d.float() for o, d in zip(now, derived, strict=True) if o.label}
            if self.stop_below > 0:
                shown = self._shown(model, text_edit(names, change, {}), now, derived, seed)
                report["shown"] = [*report.get("shown", []), round(shown, 4)]
                if shown < self.stop_below:
                    break
            fit = self._erase(now, derived, preserved, change)
            change, outputs = change.plus(fit.step), outputs.plus(fit.step, system)
            reports.append({**summary(fit), "norm": round(float(torch.cat(derived).norm(dim=1).mean()), 2)})
        return text_edit(names, change, {**report, "epochs": reports}, extra)

    def _read(self, model: Model, concept: Concept, phrases: Sequence[tuple[Phrase, Phrase]]) -> list[Source]:
        epochs, ridge = SCHEDULES[self.schedule][concept.kind]
        epochs = epochs if self.epochs is None else self.epochs
        ridge = ridge if self.derive_ridge is None else self.derive_ridge
        texts = list(read(model, [phrase for pair in phrases for phrase in pair]))
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return [
            Source(concept, "" if i else concept.name, old, new, epochs, ridge) for i, (old, new) in enumerate(pairs)
        ]

    def _derived(self, now: Sequence[Source], outputs: Outputs, change: Factors) -> list[Float64[Tensor, "len dim"]]:
        """Return, for each prompt, the embedding that brings its concept back under the current edit."""
        found: dict[int, Tensor] = {}
        for ridge in {one.ridge for one in now}:
            group = [i for i, one in enumerate(now) if one.ridge == ridge]
            rows = torch.cat([now[i].old.vectors for i in group])
            rows = derive(rows, outputs, ridge) if ridge > 0 else undo(rows, change)
            found |= dict(zip(group, rows.split([len(now[i].old.vectors) for i in group]), strict=True))
        return [found[i] for i in range(len(now))]

    def _erase(self, now: Sequence[Source], derived: Sequence[Tensor], preserved: Preserved, change: Factors) -> Fit:
        """Solve eq. 3 for the step of T that erases the derived vectors, around the current weights."""
        pair = PAIRS[self.rows]
        pairs = [pair(one.old._replace(vectors=d), one.new) for one, d in zip(now, derived, strict=True)]
        if self.own_vectors:
            own = [tail(one.old, one.new) for one in now]
            pairs += own if self.goals == "original" else [(c, c) for c, _ in own]
        rows, goals = joined(pairs)
        preserved = preserved.rescaled(self.preserve_scale)
        if self.goals == "current":  # W_t+1 = W_t S: targets and preserved vectors keep their current outputs
            fit = solve(rows, goals, self.ridge, self.erase_scale, preserved)
            return fit._replace(step=change.pushed(fit.step))
        return solve(rows, goals, self.ridge, self.erase_scale, preserved, start=change, restore=True)

    def _shown(self, model: Model, edit: Edit, now: Sequence[Source], derived: Sequence[Tensor], seed: int) -> float:
        """Return the largest share of images, over concepts, in which a derived embedding shows its concept."""
        shares = []
        with edit.applied(model) as edited:
            for one, embeds in zip(now, derived, strict=True):
                if one.label:
                    queries = [
                        Query(one.concept.texts[0], seed=seed + i, context=Context(embeds.float()[None]))
                        for i in range(self.stop_images)
                    ]
                    shares.append(presence(model, one.concept, edited.generate(queries)))
        return max(shares)


def presence(model: Model, concept: Concept, images: Tensor) -> float:
    """Return the share of images whose top judged class is the concept; raises `UnknownName` if there is none."""
    from efface.judges.mini import judge

    looker = judge(model.name)
    classes, probabilities = (
        (looker.styles, looker.style_probs) if concept.kind == "style" else (looker.classes, looker.objects)
    )
    if concept.name not in classes:
        raise unknown("class of the judge", concept.name, classes)
    return float((probabilities(images).argmax(1) == classes.index(concept.name)).float().mean())
