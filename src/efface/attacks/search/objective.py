"""What contexts are optimised for: to predict the noise in pictures of the concept, or the concept's own score.

Noise regression is textual inversion's loss (Gal et al. 2022, https://arxiv.org/abs/2208.01618). It fails against a
guard: what a guard changes is the guided prediction, which no true noise is the target of. There the prediction under
the guard is matched to the original model's guided prediction of the concept, as in the code of Pham et al. 2023,
https://arxiv.org/abs/2308.01508 (the paper does not say so).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from efface.attack import Target
from efface.attacks.search.cost import denoise_calls
from efface.context import Context
from efface.edits.guard import Hooks, MapGuard, same, unguided
from efface.models.model import Model

Loss = Literal["auto", "noise", "score"]
SPAN, CALLS = 90, 35  # of the window in which a stateful guard is run: 35 of 90 timesteps; the last is learned from


@dataclass(frozen=True, eq=False)
class Draw:
    """Hold what each row of a batch is compared on: a noised picture.

    clean: latents. noise: standard normal, the same at every timestep. t: timestep. before: earlier timesteps, noisiest
    first, for stateful guards. picture: the number of the picture, by default 0.
    """

    clean: Float[Tensor, "n ch h w"]
    noise: Float[Tensor, "n ch h w"]
    t: Shaped[Tensor, " n"]
    before: Shaped[Tensor, "n calls"]
    picture: Shaped[Tensor, " n"] | None = None


def draw(model: Model, latents: Float[Tensor, "p ch h w"], rngs: Sequence[torch.Generator], window: int = 0) -> Draw:
    """Draw a picture, a timestep and noise for each row from its own generator, so that rows do not depend on others.

    window: above 0, draw a span of 90 timesteps and so many of them; the last, the least noisy, is the row's own.
    """
    total, numbers, rows = model.family.schedule.total, [], []
    span = min(SPAN, total)
    for rng in rngs:
        numbers.append(int(torch.randint(len(latents), (1,), generator=rng)))
        if window:
            first = model.family.schedule.FIRST + int(torch.randint(total - span + 1, (1,), generator=rng))
            times = (first + torch.randperm(span, generator=rng)[:window]).sort(descending=True)[0]
        else:
            times = model.family.schedule.random_times(1, rng)
        rows.append((torch.randn(latents.shape[1:], generator=rng), times))
    noise, times = (torch.stack(column) for column in zip(*rows, strict=True))
    times, clean = times.to(latents.device), latents[numbers]
    return Draw(clean, noise.to(latents), times[:, -1], times[:, :-1], torch.tensor(numbers))


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of contexts on drawn pictures, one number a row; gradients flow through the edited model's guards.

    target: the models. latents: pictures of the concept. loss: noise, score, or auto: score where a guard changes the
    guided prediction, which noise regression does not see (a map of the text is seen by both, and is learned by noise).
    wanted: the concept's contexts for the original model; picture i is asked for by row i modulo their number; needed
    by score only. guidance: of both sides of score; 1 compares the conditional predictions. window: predictions under a
    stateful guard (SLD) for one of a row. through: whether gradients flow through the guard's state, as in the code of
    Pham et al.; else it is held fixed, which needs the memory of one prediction.
    """

    target: Target
    latents: Float[Tensor, "p ch h w"]
    loss: Loss = "auto"
    wanted: Context | None = None
    guidance: float = 7.5
    window: int = CALLS
    through: bool = True

    @cached_property
    def matches_score(self) -> bool:
        """Return whether the loss is the distance to the original model's prediction."""
        if self.loss != "auto":
            return self.loss == "score"
        model = self.target.edited
        rest = replace(model, guards=tuple(guard for guard in model.guards if not isinstance(guard, MapGuard)))
        hooks = rest.hooks()
        return hooks.guide is not unguided or hooks.null is not same

    @property
    def calls(self) -> int:
        """Return the calls of the denoiser a row costs."""
        return self.calls_in(self.window)

    def calls_in(self, window: int) -> int:
        """Return the calls of the denoiser a row costs with so many predictions under a stateful guard."""
        guided = self.guidance != 1
        own = denoise_calls(self.target.edited) * window if self._stateful else 1 + (self.matches_score and guided)
        return own + (1 + guided if self.matches_score else 0)

    @cached_property
    def _stateful(self) -> bool:
        return self.target.edited.hooks().guide is not unguided

    def draw(self, rngs: Sequence[torch.Generator]) -> Draw:
        """Draw what one row for each generator is compared on."""
        return draw(self.target.edited, self.latents, rngs, self.window if self._stateful else 0)

    def __call__(self, c: Context, at: Draw) -> Float[Tensor, " n"]:
        """Return the mean squared error of each row."""
        model = self.target.edited
        x, hooks = model.family.schedule.noised(at.clean, at.noise, at.t), model.hooks()
        if self.matches_score:
            error = self._guided(hooks, x, c, at) - self._wanted(x, at)
        else:
            error = self._conditional(hooks, x, c, at) - model.family.schedule.target(at.clean, at.noise)
        return error.square().mean((1, 2, 3))

    def _guided(self, hooks: Hooks, x: Tensor, c: Context, at: Draw) -> Tensor:
        if self.guidance == 1:
            return self._conditional(hooks, x, c, at)
        cond, uncond = self._denoised(hooks, x, c, at)
        return uncond + self.guidance * (cond - uncond)

    def _conditional(self, hooks: Hooks, x: Tensor, c: Context, at: Draw) -> Tensor:
        if hooks.guide is unguided:
            return self.target.edited.eps(x, at.t, hooks.embed(c).expand(len(x)))
        return self._denoised(hooks, x, c, at)[0]

    def _denoised(self, hooks: Hooks, x: Tensor, c: Context, at: Draw) -> tuple[Tensor, Tensor]:
        """Predict under the guards, whose state is first brought to this timestep along earlier ones."""
        model, null = self.target.edited, self.target.edited.null()
        if hooks.guide is not unguided:
            with torch.set_grad_enabled(self.through and torch.is_grad_enabled()):
                for t in at.before.T:
                    model.denoise(model.family.schedule.noised(at.clean, at.noise, t), t, c, null, hooks)
        return model.denoise(x, at.t, c, null, hooks)

    @torch.no_grad()
    def _wanted(self, x: Tensor, at: Draw) -> Tensor:
        original, wanted = replace(self.target.source, guards=()), self.wanted
        assert wanted is not None
        rows = wanted[:1] if at.picture is None else wanted[at.picture % len(wanted)]
        if self.guidance == 1:
            return original.eps(x, at.t, rows)
        cond, uncond = original.denoise(x, at.t, rows, original.null())
        return uncond + self.guidance * (cond - uncond)
