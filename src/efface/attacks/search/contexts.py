"""The space of contexts of a search, and the judge's probability for contexts."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Target
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query

Tokens = Float[Tensor, "n len dim"]


@dataclass(frozen=True, eq=False)
class Span:
    """Hold the contexts origin + Σ a_i direction_i, with the sum scaled to one norm.

    origin: (1, len, dim). directions: (k, len, dim). radius: Frobenius norm of the sum, 0 for no scaling.
    """

    origin: Float[Tensor, "1 len dim"]
    directions: Float[Tensor, "k len dim"]
    radius: float

    def __call__(self, rows: Float[Tensor, "n k"]) -> Tokens:
        """Return one context for each row of coefficients a."""
        moved = torch.tensordot(rows.to(self.directions), self.directions, 1)
        if self.radius:
            norms = moved.flatten(1).norm(dim=1).clamp(min=1e-12)
            moved = moved * (self.radius / norms)[:, None, None]
        return self.origin + moved


def span(target: Target, queries: tuple[Query, ...], radius: float | None) -> Span:
    """Return the contexts that the queries' prompts span.

    A model whose prompt is a single vector (the digits) is searched along its coordinates, around 0. Otherwise every
    query's prompt is a direction away from no prompt. radius: None for the directions' mean norm.
    Raises `BadInput` when the prompts are not different from each other and from no prompt.
    """
    null = target.edited.null().tokens.float()
    length, width = null.shape[1:]
    if length == 1:
        origin, directions = torch.zeros_like(null), torch.eye(width, device=null.device)[:, None]
    else:
        texts = list(dict.fromkeys(query.prompt for query in queries))
        origin, directions = null, target.edited.encode(texts).tokens.float() - null
    norms = directions.flatten(1).norm(dim=1)
    if len(directions) < 2 or not bool((norms > 0).all()):
        raise BadInput(
            "this model reads a prompt as several vectors: give at least two queries whose prompts differ from each "
            f"other and from no prompt, got {[query.prompt for query in queries]}"
        )
    return Span(origin, directions, float(norms.mean()) if radius is None else radius)


def token_norms(target: Target, prompt: str, radius: float | None) -> Float[Tensor, "len 1"]:
    """Return the fixed norm of each token of a context: the radius, or the norm of the prompt's own token."""
    own = target.edited.encode([prompt]).tokens[0].float().norm(dim=-1, keepdim=True)
    return own if radius is None else torch.full_like(own, radius)


def on_sphere(contexts: Tokens, norms: Float[Tensor, "len 1"]) -> Tokens:
    """Scale every token to its norm; norm 0 leaves it as it is, and zero vectors stay zero."""
    scaled = norms * contexts / contexts.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.where(norms > 0, scaled, contexts)


def queries_of(contexts: Tokens, like: Query, images: int, steps: int, rng: torch.Generator) -> list[Query]:
    """Return `images` queries for each context, each with new noise, contexts outermost; steps 0: those of `like`."""
    seeds = torch.randint(2**62, (len(contexts), images), generator=rng).tolist()
    plain = replace(like, prompt="", steps=steps or like.steps)
    pairs = zip(contexts, seeds, strict=True)
    return [replace(plain, context=Context(one[None]), seed=seed) for one, row in pairs for seed in row]


@torch.no_grad()
def probabilities(
    target: Target,
    concept: Concept,
    contexts: Tokens,
    like: Query,
    images: int,
    steps: int,
    rng: torch.Generator,
    batch: int = 256,
) -> Float[Tensor, "n images"]:
    """Return the judge's probability of the concept in `images` images of every context, on the CPU.

    steps: of the solver, 0 for those of `like`. Only one batch of images is in memory at a time.
    """
    queries = queries_of(contexts, like, images, steps, rng)
    parts = [queries[i : i + batch] for i in range(0, len(queries), batch)]
    seen = [target.seen(target.edited.generate(part, batch), concept).cpu() for part in parts]
    return torch.cat(seen).view(len(contexts), images) if seen else torch.empty(0, images)


def check_rounds(steps: tuple[int, ...], images: tuple[int, ...], survivors: tuple[int, ...]) -> None:
    """Raise `BadInput` unless every round has steps, images and survivors, and survivors do not increase."""
    if not steps or not len(steps) == len(images) == len(survivors):
        lengths = f"{len(steps)}, {len(images)}, {len(survivors)}"
        raise BadInput(f"steps, images and survivors need one number a round, got {lengths}")
    if list(survivors) != sorted(survivors, reverse=True):
        raise BadInput(f"survivors must not grow from round to round, got {list(survivors)}")
