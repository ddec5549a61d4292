"""Rows of a token search: each is a query with its prompt's tokens and the original model's image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Target
from efface.attacks.search.frames import Frame
from efface.attacks.search.objective import CALLS, SPAN, Draw, draw
from efface.concept import Concept
from efface.context import Context
from efface.models import sampling
from efface.models.model import Model
from efface.models.sampling import groups
from efface.query import Query
from efface.util.kept import kept
from efface.util.progress import progress


def plain(concept: Concept, queries: Sequence[Query]) -> list[Query]:
    """Return the queries as text prompts from noise; one without a prompt asks for the concept."""
    return [
        replace(q, prompt=q.prompt.strip() or concept.texts[0], context=None, latents=None, start=0) for q in queries
    ]


@dataclass(frozen=True, eq=False)
class Rows:
    """Hold what is searched in one batch, a row for each query; all frames have one shape.

    queries: with text prompts. frames: their tokens, some of them free. clean: latents of the original model's image
    of every query. wanted: the original model's encoding of every prompt.
    """

    queries: list[Query]
    frames: list[Frame]
    clean: Float[Tensor, "n ch h w"]
    wanted: Context

    def only(self, rows: Sequence[int]) -> "Rows":
        """Return some rows."""
        chosen = list(rows)
        queries, frames = [self.queries[i] for i in chosen], [self.frames[i] for i in chosen]
        return Rows(queries, frames, self.clean[chosen], self.wanted[chosen])


@torch.no_grad()
def rows_of(target: Target, queries: Sequence[Query], frames: Sequence[Frame], batch: int = 16) -> Rows:
    """Return the rows of queries: the original model generates the image and encodes the prompt of each."""
    source, found = target.source, {}
    for group in progress(groups(queries, batch), "images of the prompts"):
        asked = [queries[i] for i in group]

        def make(asked: list[Query] = asked) -> dict[str, Tensor]:
            return {"clean": source.sample(asked)}

        about = {"model": source.id, "queries": [query.key for query in asked]}
        made = kept("pictures", {**about, "version": sampling.VERSION}, make)
        found |= dict(zip(group, made["clean"].to(source.device), strict=True))
    clean = torch.stack([found[i] for i in range(len(queries))])
    return Rows(list(queries), list(frames), clean, source.encode([query.prompt for query in queries]))


def later(model: Model, time: int) -> int:
    """Return how many noisier timesteps a window that ends in this one is drawn from."""
    return min(SPAN - 1, model.family.schedule.total - 1 - time)


def drawn(
    model: Model, clean: Float[Tensor, "n ch h w"], rngs: Sequence[torch.Generator], window: bool, time: int | None
) -> Draw:
    """Draw noise for every row, and a timestep or, for stateful guards, a window that ends in it.

    time: the timestep; None draws one. Row i is of picture i.
    """
    own = torch.arange(len(clean))
    if time is None:
        calls = CALLS if window else 0
        rows = [draw(model, one[None], [rng], calls) for one, rng in zip(clean, rngs, strict=True)]
        noises, times = torch.cat([row.noise for row in rows]), torch.cat([row.t for row in rows])
        return Draw(clean, noises, times, torch.cat([row.before for row in rows]), own)
    span = later(model, time) if window else 0
    noise, before = [], []
    for rng in rngs:
        noise.append(torch.randn(clean.shape[1:], generator=rng))
        before.append((time + 1 + torch.randperm(span, generator=rng)[: CALLS - 1]).sort(descending=True)[0])
    t = torch.full((len(clean),), time, device=clean.device)
    return Draw(clean, torch.stack(noise).to(clean), t, torch.stack(before).to(clean.device), own)


__all__ = ["Rows", "drawn", "later", "plain", "rows_of"]
