"""The sampling loop on diffusers' schedulers; its images equal the diffusers pipeline's."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.context import Context, cat
from efface.edits.guard import Hooks, same, unguided
from efface.errors import BadInput
from efface.models import schedulers
from efface.models.family import Family
from efface.query import Query

VERSION = 1  # part of the store's keys: increase it when the same query would give another image


def sample(
    family: Family,
    queries: Sequence[Query],
    cond: Context,
    null: Context,
    hooks: Hooks,
    stop: int | None = None,
    start: int = 0,
    latents: Float[Tensor, "b ch h w"] | None = None,
) -> Float[Tensor, "b ch h w"]:
    """Run the solver on queries that share steps and solver, from step `start` up to (not including) step `stop`.

    cond, null: the contexts of both sides of guidance, one row a query. hooks: the guards', new.
    latents: the denoiser's input at step `start`; by default noise from the seeds, start 0.
    Returns fp32: the final latents, or, when stopped early, the denoiser's input x_t at step `stop`.
    Raises `BadInput` for mixed settings, a step outside the solver's, or guards that this model cannot have.
    """
    if len({(query.steps, query.solver) for query in queries}) != 1:
        raise BadInput("queries sampled together must share their steps and solver")
    scheduler = family.solver(queries[0].solver, queries[0].steps)
    timesteps, device = scheduler.timesteps, family.denoiser.device
    stop = len(timesteps) if stop is None else stop
    if not 0 <= start <= stop <= len(timesteps):
        raise BadInput(f"steps {start} to {stop} are outside 0 to {len(timesteps)}")
    guidance = torch.tensor([query.guidance for query in queries], device=device).view(-1, 1, 1, 1)
    generators = [torch.Generator().manual_seed(query.seed) for query in queries]
    extra = _step_options(scheduler, generators)

    if latents is None:
        noise = schedulers.noise(family.latent_shape, generators).to(device)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        x = _unscale(scheduler, latents.to(device, torch.float32), timesteps, start)
    check_guidance(family, hooks, queries)
    cond, null = hooks.embed(cond), hooks.null(null)
    alone = hooks.guide is unguided and bool((guidance == 1).all())
    for t in timesteps[start:stop]:
        x_in = _scaled(scheduler, x, t)
        out = family.predict(x_in, t, cond) if alone else _guided(family, x_in, t, cond, null, guidance, hooks)
        x = scheduler.step(out, t, x, return_dict=False, **extra)[0]
    return _scaled(scheduler, x, timesteps[stop]) if stop < len(timesteps) else x


def check_guidance(family: Family, hooks: Hooks, queries: Sequence[Query]) -> None:
    """Raise `BadInput` for guards on guidance, and queries without, on a model into which guidance is distilled.

    A guard on the text alone changes both sides alike, and needs none.
    """
    acts = hooks.guide is not unguided or hooks.null not in (same, hooks.embed)
    if family.distilled and acts and any(query.guidance == 1 for query in queries):
        raise BadInput(
            f"guidance is distilled into this model ({family.TITLE}), which therefore has no unconditional side that a "
            "guard could act on: give a true guidance scale above 1 (guidance; it doubles the calls), or an edit of "
            "weights"
        )


def denoise(family: Family, x: Tensor, t: Tensor, cond: Context, null: Context) -> tuple[Tensor, Tensor]:
    """Return the denoiser's output for (cond, null) at x_t from one batched pass; one context, or one per image."""
    both = cat([null.expand(len(x)), cond.expand(len(x))])
    uncond, out = family.predict(torch.cat([x, x]), t.repeat(2) if t.dim() else t, both).chunk(2)
    return out, uncond


def _guided(
    family: Family, x: Tensor, t: Tensor, cond: Context, null: Context, guidance: Tensor, hooks: Hooks
) -> Tensor:
    """Return the guided prediction as the denoiser's own output, from one batched pass."""
    out, uncond = denoise(family, x, t, cond, null)
    if hooks.guide is unguided:
        return uncond + guidance * (out - uncond)  # linear, so the same in the output as in eps
    schedule = family.schedule
    out, uncond = hooks.guide(family.eps, x, t, schedule.eps(out, x, t), schedule.eps(uncond, x, t))
    return schedule.out(uncond + guidance * (out - uncond), x, t)


def _scaled(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    """Return x_t as the denoiser reads it; a flow's schedulers do not scale it."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def _unscale(scheduler: Any, x: Tensor, timesteps: Tensor, start: int) -> Tensor:
    """Undo `scale_model_input`, which is linear in x."""
    if start >= len(timesteps):
        return x
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return x / _scaled(scheduler, torch.ones((), device=x.device), timesteps[start])


def _step_options(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def groups(queries: Sequence[Query], batch: int) -> list[list[int]]:
    """Return the indices of queries in batches that share steps, solver, start, and whether there is guidance."""
    found: dict[tuple[int, str, bool, bool, int], list[int]] = {}
    for i, query in enumerate(queries):
        key = (query.steps, query.solver, query.guidance == 1, query.latents is None, query.start)
        found.setdefault(key, []).append(i)
    return [group[i : i + batch] for group in found.values() for i in range(0, len(group), batch)]
