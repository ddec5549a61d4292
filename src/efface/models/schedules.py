"""Noise schedules: the amount of noise at a timestep, and the meaning of a denoiser's output.

A schedule gives x_t = alpha x_0 + sigma noise, and says what "eps" is: the quantity in which papers write losses,
guidance and steps. It is the noise for a diffusion model and the velocity v = noise - x_0 for a flow, in the place of
eps: the algebra is the same, and at sigma = 1, where a flow starts, the noise says nothing about x_0.
Each model family has its own schedule; all other code uses it and does not depend on the family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.errors import BadInput, BadModel

Step = tuple[float | int | None, float | int]  # (less noisy, noisier) timesteps; None stands for no noise
Convert = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (value, x, alpha, sigma) -> value


class Output(NamedTuple):
    """Convert a denoiser's output to eps, and eps to the output."""

    to_eps: Convert
    from_eps: Convert


OUTPUTS: Mapping[str, Output] = {
    "epsilon": Output(lambda out, x, a, s: out, lambda eps, x, a, s: eps),
    "v_prediction": Output(lambda out, x, a, s: a * out + s * x, lambda eps, x, a, s: (eps - s * x) / a),
    "sample": Output(lambda out, x, a, s: (x - a * out) / s, lambda eps, x, a, s: (x - s * eps) / a),
    "flow": Output(lambda out, x, a, s: out, lambda eps, x, a, s: eps),  # v itself
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule(ABC):
    """Relate clean images, noise and the denoiser's output at a timestep.

    output: what the denoiser predicts, a name in `OUTPUTS`.
    total: timesteps of training; a timestep is from FIRST to FIRST + total - 1.
    """

    output: str
    total: int

    CLEAN: ClassVar[tuple[float, float]] = (1.0, 0.0)  # (alpha, sigma) without noise
    FIRST: ClassVar[int] = 0  # the least noisy timestep

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

    def noise(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise from eps and x_t: eps itself, but for a flow."""
        return eps

    def target(self, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b ch h w"]:
        """Return the eps of a perfect prediction: what denoisers are trained to predict."""
        return noise

    def noised(
        self, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b ch h w"]:
        """Return x_t = alpha x_0 + sigma noise."""
        alpha, sigma = self._broadcast(t, clean)
        return alpha * clean + sigma * noise

    def random_times(self, n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Draw n timesteps uniformly, as in training, on the CPU."""
        return self.FIRST + torch.randint(self.total, (n,), generator=rng)

    def times(self, steps: int) -> Int[Tensor, " steps"]:
        """Return the timesteps of a deterministic trajectory in ascending order: 1, 21, …, 981 for 50 of 1,000."""
        self._check(steps)
        return (torch.arange(steps) * (self.total // steps) + 1).clamp(max=self.total - 1)

    @abstractmethod
    def solver_steps(self, scheduler: Any) -> list[Step]:
        """Return the steps of the solver "ddim", the least noisy first; scheduler: it, with its timesteps set."""

    def step(
        self, x: Tensor, eps: Tensor, t: float | int | None, t_to: float | int | None
    ) -> Float[Tensor, "b ch h w"]:
        """Move x from one timestep to another along eps, in either direction; None stands for no noise.

        DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 with sigma = 0), and for a flow Euler's method.
        """
        (alpha, sigma), (alpha_to, sigma_to) = self._exact(t), self._exact(t_to)
        return alpha_to * ((x - sigma * eps) / alpha) + sigma_to * eps

    def _exact(self, t: float | int | None) -> tuple[float, float]:
        """Return (alpha, sigma) at a timestep in double precision, as Python numbers."""
        if t is None:
            return self.CLEAN
        alpha, sigma = self.levels(torch.tensor([t]))
        return float(alpha), float(sigma)

    def _check(self, steps: int) -> None:
        """Raise `BadInput` for a number of steps that there is not."""
        if not 1 <= steps <= self.total:
            raise BadInput(f"sampling steps must be between 1 and {self.total}, got {steps}")

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

    def solver_steps(self, scheduler: Any) -> list[Step]:
        """Return the steps of DDIM, the least noisy first.

        They are diffusers' own: a step leads to t - total // steps, whatever timestep comes next, and the last one to
        no noise, or to timestep 0 where the scheduler says so.
        """
        times = [int(t) for t in scheduler.timesteps]
        ratio = self.total // len(times)
        last = None if float(scheduler.final_alpha_cumprod) == 1 else 0
        return [(t - ratio if t >= ratio else last, t) for t in reversed(times)]

    def _exact(self, t: float | int | None) -> tuple[float, float]:
        if t is None:
            return self.CLEAN
        t = int(t)
        square = float(self.alphas_cumprod[t])
        return square**0.5, (1 - square) ** 0.5


@dataclass(frozen=True, eq=False)
class Flow(NoiseSchedule):
    """Rectified flow, as SD3 and FLUX have it: x_t = (1 - s) x_0 + s noise with s = t / total, t from 1 to total.

    The denoiser predicts v = noise - x_0, which is also this schedule's eps (Liu et al. 2022,
    https://arxiv.org/abs/2209.03003; Esser et al. 2024, https://arxiv.org/abs/2403.03206).
    """

    output: str = "flow"
    total: int = 1000

    FIRST: ClassVar[int] = 1

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) = (1 - s, s)."""
        sigma = t / self.total
        return 1 - sigma, sigma

    def clean(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return x_0 = x_t - s v."""
        return x - self._broadcast(t, x)[1] * eps

    def noise(self, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise, x_t + (1 - s) v."""
        return x + self._broadcast(t, x)[0] * eps

    def target(self, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b ch h w"]:
        """Return v = noise - x_0."""
        return noise - clean

    def times(self, steps: int) -> Int[Tensor, " steps"]:
        """Return the timesteps of a trajectory in ascending order: 20, 40, …, 1000 for 50 of 1,000."""
        self._check(steps)
        return (torch.arange(steps) + 1) * (self.total // steps)

    def solver_steps(self, scheduler: Any) -> list[Step]:
        """Return the steps of Euler's method, which is DDIM for a flow."""
        times = [None, *reversed(scheduler.timesteps.double().tolist())]
        return list(pairwise(times))

    def step(
        self, x: Tensor, eps: Tensor, t: float | int | None, t_to: float | int | None
    ) -> Float[Tensor, "b ch h w"]:
        """Move x along v by Euler's method: x + (s_to - s) v."""
        return x + (self._exact(t_to)[1] - self._exact(t)[1]) * eps

    def _exact(self, t: float | int | None) -> tuple[float, float]:
        sigma = 0.0 if t is None else t / self.total
        return 1 - sigma, sigma
