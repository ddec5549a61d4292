"""The sampling loop: our own few lines on diffusers' schedulers, equal to the diffusers pipeline."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.edits.guard import unguided
from efface.errors import BadInput
from efface.models import schedulers
from efface.query import Query

if TYPE_CHECKING:
    from efface.edits.guard import Hooks
    from efface.models.model import Model

VERSION = 1  # part of the store's keys: raise it whenever the same query would give another image


def contexts(model: "Model", queries: Sequence[Query]) -> dict[str, Tensor]:
    """Encode every distinct prompt of the queries, and the empty one, once: prompt -> (len, dim)."""
    prompts = list(dict.fromkeys(["", *(query.prompt for query in queries if query.embeds is None)]))
    return dict(zip(prompts, model.encode(prompts), strict=True))


def sample(
    model: "Model",
    queries: Sequence[Query],
    stop: int | None = None,
    start: int = 0,
    latents: Tensor | None = None,
    known: dict[str, Tensor] | None = None,
    hooks: "Hooks | None" = None,
) -> Tensor:
    """Run the solver on queries that share steps and solver, from step `start` up to (not including) step `stop`.

    latents: (b, ch, h, w) as the UNet sees them at step `start`; by default noise from the seeds, start 0.
    Returns (b, ch, h, w) fp32: final latents, or, when stopped early, x_t as the UNet sees it at timestep `stop`.
    Raises `BadInput` for mixed settings or a step outside the solver's.
    """
    if len({(query.steps, query.solver) for query in queries}) != 1:
        raise BadInput("queries sampled together must share their steps and solver")
    scheduler = schedulers.ready(model.pipe, queries[0].solver, queries[0].steps, model.device)
    timesteps = scheduler.timesteps
    stop = len(timesteps) if stop is None else stop
    if not 0 <= start <= stop <= len(timesteps):
        raise BadInput(f"steps {start} to {stop} are outside 0 to {len(timesteps)}")
    known = contexts(model, queries) if known is None else known
    hooks = model.hooks() if hooks is None else hooks
    cond = torch.stack([known[q.prompt] if q.embeds is None else _embeds(model, q, len(known[""])) for q in queries])
    null = known[""].expand_as(cond)
    guidance = torch.tensor([query.guidance for query in queries], device=model.device).view(-1, 1, 1, 1)
    generators = [torch.Generator().manual_seed(query.seed) for query in queries]
    extra = _step_options(scheduler, generators)

    if latents is None:
        x = schedulers.noise(model.latent_shape, generators).to(model.device) * scheduler.init_noise_sigma
    else:
        x = _unscale(scheduler, latents.to(model.device, torch.float32), timesteps, start)
    cond, null = hooks.embed(cond), hooks.null(null)
    both = None if hooks.guide is unguided and bool((guidance == 1).all()) else torch.cat([null, cond])
    for t in timesteps[start:stop]:
        x_in = scheduler.scale_model_input(x, t)
        if both is None:
            out = model.raw(x_in, t, cond)
        else:
            out = _guided(model, x_in, t, both, guidance, hooks)
        x = scheduler.step(out, t, x, return_dict=False, **extra)[0]
    return scheduler.scale_model_input(x, timesteps[stop]) if stop < len(timesteps) else x


def _guided(model: "Model", x: Tensor, t: Tensor, both: Tensor, guidance: Tensor, hooks: "Hooks") -> Tensor:
    """Return the guided prediction in the model's own kind (eps or v), from one batched pass."""
    uncond, cond = model.raw(torch.cat([x, x]), t, both).chunk(2)
    if hooks.guide is unguided:
        return uncond + guidance * (cond - uncond)  # linear, so the same in v as in eps
    alpha, sigma = model.levels(t)
    kind = model.prediction
    cond, uncond = (schedulers.to_eps(raw, x, alpha, sigma, kind) for raw in (cond, uncond))
    cond, uncond = hooks.guide(model.eps, x, t, cond, uncond)
    return schedulers.from_eps(uncond + guidance * (cond - uncond), x, alpha, sigma, kind)


def _embeds(model: "Model", query: Query, length: int) -> Tensor:
    assert query.embeds is not None
    expected = (length, model.width)
    if query.embeds.shape != expected:
        raise BadInput(f"embeds have shape {tuple(query.embeds.shape)}, {model.name or 'this model'} reads {expected}")
    return query.embeds.to(model.device, model.dtype)


def _unscale(scheduler: Any, x: Tensor, timesteps: Tensor, start: int) -> Tensor:
    """Undo `scale_model_input`, which is linear in x."""
    if start >= len(timesteps):
        return x
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return x / scheduler.scale_model_input(torch.ones((), device=x.device), timesteps[start])


def _step_options(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def groups(queries: Sequence[Query], batch: int) -> list[list[int]]:
    """Return the indices of queries in batches that share steps, solver and whether there is guidance."""
    found: dict[tuple[int, str, bool], list[int]] = {}
    for i, query in enumerate(queries):
        found.setdefault((query.steps, query.solver, query.guidance == 1), []).append(i)
    return [group[i : i + batch] for group in found.values() for i in range(0, len(group), batch)]
