"""DDIM inversion: from a picture's latents back to the noise that they are generated from.

Song et al. 2021, https://arxiv.org/abs/2010.02502. A step back needs the noise at the point it leads to. The plain
inversion takes the noise at the point it comes from; fixed-point iterations then make it exact (Garibi et al. 2024,
ReNoise, https://arxiv.org/abs/2403.14602).
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from efface.models.model import Model
from efface.models.schedules import NoiseSchedule, Step

Noise = Callable[[Tensor, float | int], Tensor]  # (x_t, t) -> eps


def invert(
    schedule: NoiseSchedule, z: Float[Tensor, "b ch h w"], steps: Sequence[Step], noise: Noise, rounds: int = 0
) -> Float[Tensor, "b ch h w"]:
    """Move z from little noise to much, step by step.

    steps: in ascending order, each from the timestep that the last one led to. rounds: of the fixed-point iteration.
    """
    for low, high in steps:
        x = schedule.step(z, noise(z, high if low is None else low), low, high)
        for _ in range(rounds):
            x = schedule.step(z, noise(x, high), low, high)
        z = x
    return z


def ddim_steps(model: Model, steps: int) -> list[Step]:
    """Return the steps of the solver "ddim" on this model, the least noisy first: Euler's, for a flow."""
    return model.family.schedule.solver_steps(model.family.solver("ddim", steps))
