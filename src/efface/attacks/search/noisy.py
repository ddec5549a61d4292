"""DDIM with extra noise in its steps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from efface.models.inversion import ddim_steps
from efface.models.model import Model
from efface.models.schedules import NoiseSchedule
from efface.query import Query


def noisy_step(
    schedule: NoiseSchedule,
    x: Tensor,
    eps: Tensor,
    t: float | int,
    t_to: float | int,
    eta: Tensor,
    variance: Tensor,
    noise: Tensor,
) -> Float[Tensor, "b ch h w"]:
    """Move x to a less noisy timestep along eps, with new noise.

    eta: shares of the noise that DDPM adds, 0 for DDIM's own step (Song et al. 2021, eq. 12 and 16); above 1 there may
    be nothing left of eps. variance: factor on the variance of the new noise alone. Both (b, 1, 1, 1).
    """
    (alpha, sigma), (alpha_to, sigma_to) = (schedule.levels(torch.tensor(at, device=x.device)) for at in (t, t_to))
    ddpm = sigma_to / sigma * (1 - (alpha / alpha_to) ** 2).clamp(min=0).sqrt()  # eq. 16 at eta 1
    added = eta * ddpm
    rest = (sigma_to**2 - added**2).clamp(min=0).sqrt()
    time = torch.tensor(t, device=x.device)
    clean, old = schedule.clean(eps, x, time), schedule.noise(eps, x, time)
    return alpha_to * clean + rest * old + added * variance.sqrt() * noise


@torch.no_grad()
def noisy(
    model: Model,
    queries: Sequence[Query],
    etas: Sequence[float],
    variances: Sequence[float],
    rngs: Sequence[torch.Generator],
) -> Float[Tensor, "b ch h w"]:
    """Run DDIM with extra noise in all steps but the last, and return the denoiser's input at that.

    queries: with the solver "ddim" and equal steps; one eta, variance and generator each.
    """
    schedule, device = model.family.schedule, model.device
    x = model.sample(queries, stop=0)
    cond, null = model.contexts(queries)

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device, dtype=x.dtype).view(-1, 1, 1, 1)

    guidance, eta, variance = column([query.guidance for query in queries]), column(etas), column(variances)
    hooks = model.hooks()
    for low, high in ddim_steps(model, queries[0].steps)[:0:-1]:
        with_c, without = model.denoise(x, torch.tensor(high, device=device), cond, null, hooks)
        noise = torch.stack([torch.randn(x.shape[1:], generator=rng) for rng in rngs]).to(x)
        x = noisy_step(schedule, x, without + guidance * (with_c - without), high, low or 0, eta, variance, noise)
    return x
