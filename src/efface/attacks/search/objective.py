"""What contexts are optimised for: to predict the noise in pictures of the concept, or the concept's own score.

Noise regression is textual inversion's loss (Gal et al. 2022, https://arxiv.org/abs/2208.01618). It fails against a
guard: what a guard changes is the guided prediction, which no true noise is the target of. There the prediction under
the guard is matched to the original model's guided prediction of the concept, as in the code of Pham et al. 2023,
https://arxiv.org/abs/2308.01508 (the paper does not say so).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from efface.attack import Target
from efface.context import Context
from efface.edits.guard import Hooks, unguided
from efface.models.model import Model

Loss = Literal["auto", "noise", "score"]
SPAN, CALLS = 90, 35  # of the window in which a stateful guard is run: the last of 35 of 90 timesteps is learned from


@dataclass(frozen=True, eq=False)
class Draw:
    """Hold what one row of a batch is compared on: a noised picture.

    clean: latents. noise: standard normal. t: timestep. before: earlier timesteps, noisiest first, for stateful guards.
    """

    clean: Float[Tensor, "n ch h w"]
    noise: Float[Tensor, "n ch h w"]
    t: Shaped[Tensor, " n"]
    before: Shaped[Tensor, "n calls"]


def draw(
    model: Model, latents: Float[Tensor, "p ch h w"], rngs: Sequence[torch.Generator], window: bool = False
) -> Draw:
    """Draw a picture, a timestep and noise for each row from its own generator, so that rows do not depend on others.

    window: draw a window of 90 timesteps and 35 in it; the last, the least noisy, is the row's own.
    """
    schedule, rows = model.family.schedule, []
    for rng in rngs:
        clean = latents[int(torch.randint(len(latents), (1,), generator=rng))]
        if window:
            end = SPAN + int(torch.randint(schedule.total - SPAN + 1, (1,), generator=rng))
            times = (end - SPAN + torch.randperm(SPAN, generator=rng)[:CALLS]).sort(descending=True)[0]
        else:
            times = schedule.random_times(1, rng)
        rows.append((clean, torch.randn(clean.shape, generator=rng), times))
    clean, noise, times = (torch.stack(column) for column in zip(*rows, strict=True))
    times = times.to(latents.device)
    return Draw(clean, noise.to(latents), times[:, -1], times[:, :-1])


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of contexts on drawn pictures, one number a row; gradients flow through the edited model's guards.

    target: the models. latents: pictures of the concept. loss: noise, score, or auto (score where there are guards).
    wanted: the concept's context for the original model, one row; needed by score only. guidance: of both sides of
    score; 1 compares the conditional predictions.
    """

    target: Target
    latents: Float[Tensor, "p ch h w"]
    loss: Loss = "auto"
    wanted: Context | None = None
    guidance: float = 7.5

    @property
    def matches_score(self) -> bool:
        """Return whether the loss is the distance to the original model's prediction."""
        return self.loss == "score" or (self.loss == "auto" and bool(self.target.edited.guards))

    @property
    def calls(self) -> int:
        """Return the calls of the denoiser a row costs."""
        if not self.matches_score:
            return 1
        return 2 * (2 if self.guidance != 1 else 1) * (CALLS if self._stateful else 1)

    @property
    def _stateful(self) -> bool:
        return self.target.edited.hooks().guide is not unguided

    def draw(self, rngs: Sequence[torch.Generator]) -> Draw:
        """Draw what one row for each generator is compared on."""
        return draw(self.target.edited, self.latents, rngs, self._stateful)

    def __call__(self, c: Context, at: Draw) -> Float[Tensor, " n"]:
        """Return the mean squared error of each row."""
        model = self.target.edited
        x = model.family.schedule.noised(at.clean, at.noise, at.t)
        if self.matches_score:
            error = self._guided(model, model.hooks(), x, c, at) - self._wanted(x, at.t)
        else:
            hooks = model.hooks()
            if hooks.guide is unguided:
                error = model.eps(x, at.t, hooks.embed(c.expand(len(x)))) - at.noise
            else:
                error = self._denoised(model, hooks, x, c, at)[0] - at.noise
        return error.square().mean((1, 2, 3))

    def _guided(self, model: Model, hooks: Hooks, x: Tensor, c: Context, at: Draw) -> Tensor:
        if self.guidance == 1 and hooks.guide is unguided:
            return model.eps(x, at.t, hooks.embed(c.expand(len(x))))
        cond, uncond = self._denoised(model, hooks, x, c, at)
        return uncond + self.guidance * (cond - uncond)

    def _denoised(self, model: Model, hooks: Hooks, x: Tensor, c: Context, at: Draw) -> tuple[Tensor, Tensor]:
        """Predict under the guards, whose state is first brought to this timestep along earlier ones."""
        null = model.null()
        if hooks.guide is not unguided:
            with torch.no_grad():
                for t in at.before.T:
                    earlier = model.family.schedule.noised(at.clean, at.noise, t)
                    model.denoise(earlier, t, c.map(Tensor.detach), null, hooks)
        return model.denoise(x, at.t, c, null, hooks)

    @torch.no_grad()
    def _wanted(self, x: Tensor, t: Tensor) -> Tensor:
        original, wanted = replace(self.target.source, guards=()), self.wanted
        assert wanted is not None
        if self.guidance == 1:
            return original.eps(x, t, wanted)
        cond, uncond = original.denoise(x, t, wanted, original.null())
        return uncond + self.guidance * (cond - uncond)
