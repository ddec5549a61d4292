"""What a search uses: images, calls of the denoiser and of the text encoder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.context import Context
from efface.edits.guard import unguided
from efface.models.model import Model
from efface.query import Query


@dataclass(eq=False)
class Cost:
    """Count what a search uses.

    images: generated. calls: of a denoiser, one image each, whoever's model it is. backward: how many of them were
    differentiated. texts: encoded, without the empty one.
    """

    images: int = 0
    calls: int = 0
    backward: int = 0
    texts: int = 0

    def generated(self, model: Model, queries: Sequence[Query]) -> None:
        """Count the images of queries by a model; each different prompt is encoded once."""
        self.images += len(queries)
        self.texts += len({query.prompt for query in queries})
        self.calls += calls_of(model, queries)


def calls_of(model: Model, queries: Sequence[Query]) -> int:
    """Return the calls of the denoiser that generating the queries takes, with those that guards add.

    Some solvers call it more often than they have steps.
    """
    kinds = Counter((query.steps, query.solver, query.start, query.guidance == 1) for query in queries)
    each = denoise_calls(model)
    alone = model.hooks().guide is unguided
    total = 0
    for (steps, solver, start, plain), count in kinds.items():
        total += count * (len(model.timesteps(steps, solver)) - start) * (1 if plain and alone else each)
    return total


def denoise_calls(model: Model) -> int:
    """Return the calls of `Model.denoise`: with the prompt, without it, and what guards add."""
    made: list[int] = []

    def eps(x: Tensor, _t: Any, _c: Context) -> Tensor:
        made.append(len(x))
        return torch.zeros_like(x)

    x = torch.zeros(1, *model.latent_shape, device=model.device)
    model.hooks().guide(eps, x, torch.zeros(1, device=model.device), x, x)
    return 2 + sum(made)


__all__ = ["Cost", "calls_of", "denoise_calls"]
