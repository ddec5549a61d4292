"""Partly denoised latents: where z_t comes from in ESD, SDD, KPOP and the surgical method.

DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 with σ = 0) from noise to a random place on
the way, for a batch of trajectories at once; each leaves the batch where it stops, so a batch costs what its
members cost alone. Which network denoises (student, base, average) is the caller's choice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.errors import BadInput
from efface.models.model import Model

Guide = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (z_t, t, row, cond, uncond) -> ε


class Partial(NamedTuple):
    """Latents on their way, the time step of each, and the row of the contexts it was denoised under."""

    z: Float[Tensor, "n ch h w"]
    t: Int[Tensor, " n"]
    row: Int[Tensor, " n"]


def ddim_times(steps: int, total: int = 1000) -> Int[Tensor, " steps"]:
    """Return Stable Diffusion's DDIM time steps in ascending order: 1, 21, …, 981 for 50 of 1,000."""
    if not 1 <= steps <= total:
        raise BadInput(f"sampling steps must be between 1 and {total}, got {steps}")
    return (torch.arange(steps) * (total // steps) + 1).clamp(max=total - 1)


@torch.no_grad()
def partly_denoise(
    model: Model,
    contexts: Float[Tensor, "c len dim"],
    null: Float[Tensor, "1 len dim"],
    rng: torch.Generator,
    n: int,
    guidance: float = 3.0,
    steps: int = 50,
    *,
    reuse: int = 1,
    jitter: bool = True,
    guide: Guide | None = None,
) -> Partial:
    """Draw n latents: noise denoised under random contexts, down to random levels of the `steps` of DDIM.

    guidance: scale of classifier-free guidance; 1 skips the unconditional half.
    reuse: levels recorded on each trajectory; must divide n.
    jitter: draw t uniformly from the bin of the level, as the code of ESD does; otherwise take its own t.
    guide: takes the place of classifier-free guidance.
    Raises: BadInput for steps or reuse outside their range.
    """
    if reuse < 1 or n % reuse:
        raise BadInput(f"reuse must divide the {n} latents of a step, got {reuse}")
    alphas = model.part("scheduler").alphas_cumprod.tolist()
    b, total, device = n // reuse, len(alphas), contexts.device
    times, row = ddim_times(steps, total), torch.randint(len(contexts), (b,), generator=rng).to(device)
    z = torch.randn(b, *model.latent_shape, generator=rng).to(device)
    stops = torch.randint(steps, (reuse, b), generator=rng)  # index of a level, 0 is the cleanest
    levels, last, kept = stops.flatten(), stops.amin(0), z.repeat(reuse, 1, 1, 1)
    for i in reversed(range(int(last.min()), steps)):
        here, going = (levels == i).nonzero().flatten().to(device), (last < i).nonzero().flatten().to(device)
        kept[here] = z[here % b]
        if len(going):
            t = times[i].to(device).expand(len(going))
            e = _guided(model, z[going], t, row[going], contexts, null, guidance, guide)
            z[going] = ddim_step(z[going], e, alphas[times[i]], alphas[times[i - 1]])
    width = total // steps
    t = levels * width + torch.randint(width, levels.shape, generator=rng) if jitter else times[levels]
    return Partial(kept, t.to(device), row.repeat(reuse))


def ddim_step(
    z: Float[Tensor, "b ch h w"], e: Float[Tensor, "b ch h w"], alpha: float, alpha_to: float
) -> Float[Tensor, "b ch h w"]:
    """Move z from the level ᾱ to the level ᾱ_to along the predicted noise e; up or down."""
    clean = (z - (1 - alpha) ** 0.5 * e) / alpha**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * e


def _guided(
    model: Model,
    z: Tensor,
    t: Tensor,
    row: Tensor,
    contexts: Tensor,
    null: Tensor,
    guidance: float,
    guide: Any,
) -> Tensor:
    if guidance == 1 and guide is None:
        return model.eps(z, t, contexts[row])
    cond, uncond = model.denoise(z, t, contexts[row], null)
    return guide(z, t, row, cond, uncond) if guide else uncond + guidance * (cond - uncond)
