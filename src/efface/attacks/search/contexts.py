"""Draw pictures for many contexts and ask the judge: what searches over contexts share."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Target
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query


def context_shape(target: Target) -> tuple[int, int]:
    """Return (len, dim) of the contexts that the attacked model reads."""
    _, length, width = target.edited.encode([""]).tokens.shape
    return length, width


def on_sphere(contexts: Float[Tensor, "n len dim"], radius: float) -> Float[Tensor, "n len dim"]:
    """Bring every token to a norm; radius 0 leaves them as they are, and zero vectors stay zero."""
    return radius * contexts / contexts.norm(dim=-1, keepdim=True).clamp(min=1e-12) if radius else contexts


def asking(
    contexts: Float[Tensor, "n len dim"], like: Query, draws: int, steps: int, rng: torch.Generator
) -> list[Query]:
    """Return `draws` queries a context, with fresh noise each, contexts outermost."""
    seeds = torch.randint(2**62, (len(contexts), draws), generator=rng).tolist()
    plain = replace(like, prompt="", steps=steps or like.steps)
    pairs = zip(contexts, seeds, strict=True)
    return [replace(plain, context=Context(one[None]), seed=seed) for one, row in pairs for seed in row]


@torch.no_grad()
def chances(
    target: Target,
    concept: Concept,
    contexts: Float[Tensor, "n len dim"],
    like: Query,
    draws: int,
    steps: int,
    rng: torch.Generator,
    batch: int = 256,
) -> Float[Tensor, "n draws"]:
    """Return the judge's probability of the concept in `draws` pictures of every context.

    steps: of the solver; 0 as many as `like` has. Only a batch of pictures is held at a time.
    """
    queries = asking(contexts, like, draws, steps, rng)
    parts = [queries[i : i + batch] for i in range(0, len(queries), batch)]
    seen = [target.seen(target.edited.generate(part, batch), concept) for part in parts]
    return torch.cat(seen).view(len(contexts), draws) if seen else torch.empty(0, draws)


def check_rungs(steps: tuple[int, ...], draws: tuple[int, ...], keep: tuple[int, ...]) -> None:
    """Raise `BadInput` unless every rung has its steps, draws and survivors, and the survivors get fewer."""
    if not steps or not len(steps) == len(draws) == len(keep):
        raise BadInput(f"steps, draws and keep need one number a rung, got {len(steps)}, {len(draws)}, {len(keep)}")
    if min(draws) < 1 or min(keep) < 1 or min(steps) < 0:
        raise BadInput("draws and keep are at least 1 and steps at least 0")
    if list(keep) != sorted(keep, reverse=True):
        raise BadInput(f"keep must not grow from rung to rung, got {list(keep)}")
