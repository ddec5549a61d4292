"""Neighbours by sight: the concepts whose images are nearest to those of an erased one.

Amara et al. 2025, EraseBench, https://arxiv.org/abs/2501.09833, asks after neighbours by sight, by paraphrase and by
pairing; the last two are groups of prompts (`reworded`, `joined` and `beside` in `efface.evaluation.prompts`).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from efface.concept import Concept
from efface.evaluation.prompts import Plan
from efface.evaluation.store import Store
from efface.judge import Judge
from efface.models.model import Model
from efface.query import Query


def look_alikes(
    model: Model, targets: Sequence[Concept], table: Mapping[str, Concept], judge: Judge, plan: Plan, store: Store
) -> tuple[str, ...]:
    """Return the names of the plan's number of other concepts that look most like a target, the most like it first.

    By the cosine of the mean image vectors of the un-erased model's images, which an evaluation needs anyway. Only
    concepts of the targets' kinds that the judge knows. () for a judge without image vectors.
    """
    if not (plan.look_alikes and judge.reads_text):
        return ()
    names, kinds = {target.name for target in targets}, {target.kind for target in targets}
    others = [c for c in table.values() if c.name not in names and c.kind in kinds and _judged(c, judge)]
    if not others:
        return ()
    own = torch.stack([_mean(model, one, plan.target_seeds[: len(plan.seeds)], judge, plan, store) for one in targets])
    each = torch.stack([_mean(model, one, plan.seeds, judge, plan, store) for one in others])
    likeness = (each @ own.mT).max(1).values
    return tuple(others[i].name for i in likeness.argsort(descending=True)[: plan.look_alikes].tolist())


def _judged(concept: Concept, judge: Judge) -> bool:
    return concept.name in judge.names("style" if concept.kind == "style" else "object")


def _mean(
    model: Model, concept: Concept, seeds: Sequence[int], judge: Judge, plan: Plan, store: Store
) -> Float[Tensor, " dim"]:
    images = store.images(model, "", [Query(concept.texts[0], seed, **plan.sampling) for seed in seeds], plan.batch)
    with torch.no_grad():
        return normalize(judge.image_features(images.to(judge.device)).float().mean(0), dim=0).cpu()


__all__ = ["look_alikes"]
