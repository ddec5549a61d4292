"""Noise schedules: the amount of noise at a timestep, and the meaning of a denoiser's output.

A schedule gives x_t = alpha x_0 + sigma eps, and (x_0, eps) from the denoiser's output. Each model family has its own;
all other code uses the schedule and does not depend on the family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.errors import BadInput, BadModel

Convert = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (value, x, alpha, sigma) -> value


class Output(NamedTuple):
    """Convert a denoiser's output to eps, and eps to the output."""

    to_eps: Convert
    from_eps: Convert


OUTPUTS: Mapping[str, Output] = {
    "epsilon": Output(lambda out, x, a, s: out, lambda eps, x, a, s: eps),
    "v_prediction": Output(lambda out, x, a, s: a * out + s * x, lambda eps, x, a, s: (eps - s * x) / a),
    "sample": Output(lambda out, x, a, s: (x - a * out) / s, lambda eps, x, a, s: (x - s * eps) / a),
    "flow": Output(lambda out, x, a, s: x + a * out, lambda eps, x, a, s: (eps - x) / a),  # out = eps - x_0, a = 1 - s
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule(ABC):
    """Relate clean images, noise and the denoiser's output at a timestep.

    output: what the denoiser predicts, a name in `OUTPUTS`.
    total: timesteps of training; a timestep is from 0 to total - 1.
    """

    output: str
    total: int

    CLEAN: ClassVar[tuple[float, float]] = (1.0, 0.0)  # (alpha, sigma) without noise

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise BadModel(f"unknown output of the denoiser {self.output!r}; known: {', '.join(OUTPUTS)}")

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at timesteps, in their shape; also for fractional timesteps, which some solvers use."""

    def eps(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return eps from the denoiser's output for x_t, all (b, ch, h, w); t: one timestep or one per image."""
        return OUTPUTS[self.output].to_eps(out, x, *self._broadcast(t, x))

    def out(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the output of a denoiser that predicts eps: the inverse of `eps`."""
        return OUTPUTS[self.output].from_eps(eps, x, *self._broadcast(t, x))

    def clean(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return x_0 from eps and x_t."""
        alpha, sigma = self._broadcast(t, x)
        return (x - sigma * eps) / alpha

    def noised(
        self, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b ch h w"]:
        """Return x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self._broadcast(t, clean)
        return alpha * clean + sigma * noise

    def random_times(self, n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Draw n timesteps uniformly, as in training, on the CPU."""
        return torch.randint(self.total, (n,), generator=rng)

    def times(self, steps: int) -> Int[Tensor, " steps"]:
        """Return the timesteps of a deterministic trajectory in ascending order: 1, 21, …, 981 for 50 of 1,000."""
        if not 1 <= steps <= self.total:
            raise BadInput(f"sampling steps must be between 1 and {self.total}, got {steps}")
        return (torch.arange(steps) * (self.total // steps) + 1).clamp(max=self.total - 1)

    def step(self, x: Tensor, eps: Tensor, t: int | None, t_to: int | None) -> Float[Tensor, "b ch h w"]:
        """Move x from one timestep to another along eps, in either direction; None stands for no noise.

        DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 with sigma = 0), and for a flow Euler's method.
        """
        (alpha, sigma), (alpha_to, sigma_to) = self._exact(t), self._exact(t_to)
        return alpha_to * ((x - sigma * eps) / alpha) + sigma_to * eps

    def _exact(self, t: int | None) -> tuple[float, float]:
        """Return (alpha, sigma) at a whole timestep in double precision, as Python numbers."""
        if t is None:
            return self.CLEAN
        alpha, sigma = self.levels(torch.tensor([t]))
        return float(alpha), float(sigma)

    def _broadcast(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.levels(torch.as_tensor(t, device=x.device).reshape(-1, *[1] * (x.dim() - 1)))


@dataclass(frozen=True, eq=False)
class Diffusion(NoiseSchedule):
    """The variance-preserving schedule of Stable Diffusion 1.x, 2.x and SDXL: alpha² + sigma² = 1.

    alphas_cumprod: alpha² at every timestep, (total,).
    """

    alphas_cumprod: Float[Tensor, " total"]

    @classmethod
    def of(cls, scheduler: object) -> "Diffusion":
        """Return the schedule of a diffusers scheduler that has `alphas_cumprod`; raises `BadModel` for another."""
        alphas, config = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "config", None)
        if alphas is None or config is None:
            raise BadModel(f"a {type(scheduler).__name__} has no alphas_cumprod: its noise levels are not known")
        return cls(config.prediction_type, len(alphas), alphas)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma); between two timesteps sigma/alpha is interpolated linearly."""
        alphas = self.alphas_cumprod
        ratios = ((1 - alphas) / alphas).sqrt().to(t.device)
        low = t.floor().long().clamp(0, len(ratios) - 1)
        high = t.ceil().long().clamp(0, len(ratios) - 1)
        ratio = ratios[low].lerp(ratios[high], (t - low).to(ratios.dtype)) if t.is_floating_point() else ratios[low]
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha

    def _exact(self, t: int | None) -> tuple[float, float]:
        if t is None:
            return self.CLEAN
        square = float(self.alphas_cumprod[t])
        return square**0.5, (1 - square) ** 0.5
