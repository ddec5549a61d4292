"""Queries that start from given latents, and queries ranked by the judge."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Target
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.model import Model
from efface.query import Query

# Solvers whose first steps differ from the later ones: they cannot begin in the middle.
WHOLE = ("PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler")


def plain(queries: Sequence[Query], solver: str) -> tuple[Query, ...]:
    """Return the queries as they start from noise, with a solver; "" leaves their own. Raises `UnknownName`."""
    return tuple(replace(query, latents=None, start=0, solver=solver or query.solver) for query in queries)


def check_late(model: Model, queries: Sequence[Query]) -> None:
    """Raise `BadInput` for a query whose solver cannot begin in the middle."""
    for query in queries:
        kind = type(model.family.solver(query.solver, query.steps)).__name__
        if kind in WHOLE:
            called = query.solver or f"of this model, {kind},"
            raise BadInput(f"the solver {called} cannot begin in the middle: give another, such as ddim")


def noised(model: Model, query: Query, clean: Tensor, noise: Tensor, start: int) -> Query:
    """Return the query from a picture's latents with noise on them, both (1, ch, h, w), at a step of its solver."""
    alpha, sigma = model.levels(model.timesteps(query.steps, query.solver)[start])  # some solvers' are fractional
    return replace(query, latents=(alpha * clean + sigma * noise).detach().clone(), start=start)


def alike(queries: Sequence[Query]) -> list[list[int]]:
    """Return the numbers of queries in groups that share steps and solver."""
    found: dict[tuple[int, str], list[int]] = {}
    for i, query in enumerate(queries):
        found.setdefault((query.steps, query.solver), []).append(i)
    return list(found.values())


@torch.no_grad()
def seen(
    target: Target, concept: Concept, queries: Sequence[Query], batch: int = 32, model: Model | None = None
) -> Float[Tensor, " n"]:
    """Return the judge's probability of the concept in the image of each query, by the edited model or another."""
    model = target.edited if model is None else model
    parts = [queries[i : i + batch] for i in range(0, len(queries), batch)]
    return torch.cat([target.seen(model.generate(part, batch), concept).cpu() for part in parts])


def ranked(queries: Sequence[Query], scores: Tensor) -> tuple[tuple[Query, ...], tuple[float, ...], list[int]]:
    """Return queries and scores, the best first, and the order; equal ones stay in order."""
    order = scores.argsort(descending=True, stable=True).tolist()
    return tuple(queries[i] for i in order), tuple(float(scores[i]) for i in order), order
