"""Partly denoised latents z_t, as ESD, SDD, KPOP and the surgical method train on.

DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 with σ = 0) from noise to a random timestep,
for a batch of trajectories at once. Each leaves the batch where it stops, so a batch costs as much as its members
one by one. The caller chooses the network that denoises (student, base, average).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.context import Context
from efface.errors import BadInput
from efface.models.model import Model

Guide = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (z_t, t, row, cond, uncond) -> ε


class Partial(NamedTuple):
    """Hold partly denoised latents, the timestep of each, and the row of the context it was denoised with."""

    z: Float[Tensor, "n ch h w"]
    t: Int[Tensor, " n"]
    row: Int[Tensor, " n"]


@torch.no_grad()
def partly_denoise(
    model: Model,
    contexts: Context,
    null: Context,
    rng: torch.Generator,
    n: int,
    guidance: float = 3.0,
    steps: int = 50,
    *,
    reuse: int = 1,
    jitter: bool = True,
    guide: Guide | None = None,
) -> Partial:
    """Generate n partly denoised latents, with random contexts and down to random steps of DDIM.

    guidance: scale of classifier-free guidance; 1 skips the unconditional half, and so does a model into which guidance
    is distilled, whose latents are then those of its use.
    reuse: latents taken from each trajectory; must divide n.
    jitter: draw t uniformly from the interval of the step, as the code of ESD does; otherwise use the step's own t.
    guide: replaces classifier-free guidance.
    Raises: BadInput for steps or reuse outside their range.
    """
    if reuse < 1 or n % reuse:
        raise BadInput(f"reuse must divide the {n} latents of a step, got {reuse}")
    schedule = model.family.schedule
    b, total, device = n // reuse, schedule.total, contexts.device
    times, row = schedule.times(steps), torch.randint(len(contexts), (b,), generator=rng).to(device)
    z = torch.randn(b, *model.latent_shape, generator=rng).to(device)
    stops = torch.randint(steps, (reuse, b), generator=rng)  # index of a timestep in `times`, 0 is the cleanest
    places, last, found = stops.flatten(), stops.amin(0), z.repeat(reuse, 1, 1, 1)
    for i in reversed(range(int(last.min()), steps)):
        here, going = (places == i).nonzero().flatten().to(device), (last < i).nonzero().flatten().to(device)
        found[here] = z[here % b]
        if len(going):
            t = times[i].to(device).expand(len(going))
            e = _guided(model, z[going], t, row[going], contexts, null, guidance, guide)
            z[going] = schedule.step(z[going], e, int(times[i]), int(times[i - 1]))
    width = total // steps
    low = schedule.FIRST + places * width
    t = low + torch.randint(width, places.shape, generator=rng) if jitter else times[places]
    return Partial(found, t.to(device), row.repeat(reuse))


def _guided(
    model: Model,
    z: Tensor,
    t: Tensor,
    row: Tensor,
    contexts: Context,
    null: Context,
    guidance: float,
    guide: Any,
) -> Tensor:
    if guide is None and (guidance == 1 or model.family.distilled):
        return model.eps(z, t, contexts[row])
    cond, uncond = model.denoise(z, t, contexts[row], null)
    return guide(z, t, row, cond, uncond) if guide else uncond + guidance * (cond - uncond)
