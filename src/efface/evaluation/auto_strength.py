"""Automatic strength: the smallest strength of an edit that no learned embedding gets around (Pham et al., 2024).

Robust Concept Erasure Using Task Vectors, https://arxiv.org/abs/2404.03631, sections 4.2 and 5.1: the Erasure Score
over the name and the embeddings of Diverse Inversion has to be below τ, and six control concepts have to survive.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from efface.attack import Target
from efface.attacks.diverse_inversion import DiverseInversion
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.erasure_score import erasure_score
from efface.evaluation.strength import Strengths, choose_strength
from efface.finding import Finding
from efface.judge import Judge
from efface.models.model import Model
from efface.query import Query

CONTROL = (  # the paper's: two each of styles, objects and persons
    "art by Kilian Eng", "art by Picasso", "garbage truck", "chain saw", "Brad Pitt", "Angelina Jolie",
)  # fmt: skip
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SEEDS = 4  # images of the name, and of each control concept
UNLIKE = 0.95  # quantile of the similarity of other concepts' images with the name


def learn(model: Model, concept: Concept, preset: str, sampling: Mapping[str, Any], seed: int = 0) -> Finding:
    """Learn the embeddings of Diverse Inversion once, on the un-erased model; keep the finding for other edits.

    preset: of the attack. sampling: fields of `Query` for the images.
    """
    attack = DiverseInversion.preset(preset, through="original")
    return attack(Target(model, None, model), concept, Query(concept.texts[0], 0, **sampling), seed)


def check_learned(learned: Finding, model: Model, concept: Concept) -> None:
    """Raise `BadInput` unless a finding is of embeddings of the concept, learned on this un-erased model."""
    meta: Any = learned.meta
    name, own = meta.get("attack"), meta.get("original")
    if name is None:
        return  # put together by hand
    if name != "diverse_inversion":
        raise BadInput(f"the embeddings are of {name}; needed are those of diverse_inversion")
    if learned.concept.name != concept.name:
        raise BadInput(f"the embeddings are of {learned.concept.name}, not of {concept.name}")
    through = own if meta["fields"].get("through") == "original" else meta["edited"]["id"]
    if through != model.id:
        raise BadInput(
            f"the embeddings were learned on another model ({str(through)[:12]}); needed are those of the un-erased "
            f"{model.name} {model.id[:12]}"
        )


def controls(concept: Concept, table: Mapping[str, Concept]) -> tuple[str, ...]:
    """Return six prompts of other concepts: at equal distances in a concept table, else the paper's."""
    others = [other for other in table.values() if other.name != concept.name]
    if not others:
        return CONTROL
    return tuple(other.texts[0] for other in others[:: max(1, len(others) // len(CONTROL))][: len(CONTROL)])


def threshold(
    model: Model, judge: Judge, concept: Concept, texts: Sequence[str], sampling: Mapping[str, Any], batch: int = 32
) -> float:
    """Return τ for a CLIP that none is published for: what 95 % of the un-erased model's images of others stay below.

    An image under τ is no more like the name than pictures of other things are. texts: prompts of the others.
    """
    queries = [Query(text, seed, **sampling) for text in texts for seed in range(SEEDS)]
    images = model.generate(queries, batch).to(judge.device)
    likeness = judge.clip_score(images, [concept.name] * len(queries)).float()
    return float(torch.quantile(likeness.cpu(), UNLIKE))


def auto_strength(
    model: Model, edit: Edit, concept: Concept, judge: Judge, learned: Finding, texts: Sequence[str],
    sampling: Mapping[str, Any], below: float, keep: float = 0.9, strengths: Sequence[float] = STRENGTHS,
    bisect: int = 2, batch: int = 32,
) -> Strengths:  # fmt: skip
    """Measure an edit at several strengths and choose the smallest that fulfils both rules, from one training.

    learned: the finding of `learn`. texts: prompts of the control concepts. below: τ. keep: share of the un-erased
    model's mean similarity of the control images with their prompts that has to be left, 0 to 1.
    Raises `BadInput` for an edit with guards, which has no strength, for a judge without a CLIP, and for embeddings
    that were learned on another model or for another concept.
    """
    check_learned(learned, model, concept)
    if edit.guards:
        raise BadInput("an edit with guards has no strength to choose: half a guard is not half of its effect")
    if not 0 <= keep <= 1:
        raise BadInput(f"keep is a share from 0 to 1, got {keep}")
    named = [Query(concept.texts[0], seed, **sampling) for seed in range(SEEDS)]
    asked = [Query(text, seed, **sampling) for text in texts for seed in range(SEEDS)]

    def control(made: Model) -> float:
        images = made.generate(asked, batch).to(judge.device)
        return float(judge.clip_score(images, [query.prompt for query in asked]).mean())

    def scored(change: Edit) -> Any:
        with change.applied(model) as edited:
            return erasure_score(edited, judge, concept, named, learned.queries, batch=batch)

    def survived(change: Edit) -> float:
        with change.applied(model) as edited:
            return control(edited)

    least = keep * control(model)
    return choose_strength(lambda s: s * edit, strengths, scored, below, survived, least, bisect)


__all__ = ["CONTROL", "STRENGTHS", "auto_strength", "controls", "learn", "threshold"]
