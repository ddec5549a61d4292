"""Gradient: climbs towards contexts that bring the concept back, through the sampler or through the noise prediction.

Through the noise prediction it is textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618) of the erased
concept, as in Pham et al. 2023, Circumventing Concept Erasure Methods, https://arxiv.org/abs/2308.01508.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Target
from efface.attacks.search.contexts import asking, chances, context_shape, on_sphere
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.loop import generator
from efface.util.progress import progress


@dataclass(frozen=True)
class Gradient(Attack):
    """Move contexts from random starts along the gradient, all starts in one batch, kept on the sphere.

    Args:
        through: sampler maximises what the judge says of pictures drawn in a few steps; eps needs no judge and
            minimises the error of the predicted noise on pictures of the concept by the original model
        restarts: random starts
        iterations: steps of Adam
        draws: noises a start and iteration
        steps: solver steps of the pictures that are differentiated
        lr: learning rate
        radius: norm that every token is kept at, 0 for free
        images: pictures of the concept that eps learns from
        ranking: pictures a start that decide which is best, at the query's own steps
    """

    through: Literal["sampler", "eps"] = "sampler"
    restarts: int = 16
    iterations: int = 30
    draws: int = 4
    steps: int = 4
    lr: float = 0.1
    radius: float = 1.0
    images: int = 256
    ranking: int = 16

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "inversion": {"through": "eps", "restarts": 8, "iterations": 120, "draws": 16, "lr": 0.05},
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "restarts": 2, "iterations": 2, "draws": 1, "steps": 2, "images": 2, "ranking": 1,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("restarts", "iterations", "draws", "steps", "images", "ranking"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0 or self.radius < 0:
            raise BadInput(f"lr is above 0 and radius at least 0, got {self.lr}, {self.radius}")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query a start, ranked by fresh pictures; raises `BadInput` when eps has no original model."""
        like = queries[0]
        start = torch.randn(self.restarts, *context_shape(target), generator=generator(seed, "start"))
        v = on_sphere(start, self.radius).requires_grad_()
        optimiser = torch.optim.Adam([v], lr=self.lr)
        losses = self._sampler(target, concept, like) if self.through == "sampler" else self._eps(target, concept, like)
        history: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            for step in progress(range(self.iterations), f"gradient through {self.through}"):
                optimiser.zero_grad()
                loss = losses(on_sphere(v, self.radius), generator(seed, step))
                loss.sum().backward()
                optimiser.step()
                with torch.no_grad():
                    v.copy_(on_sphere(v, self.radius))
                history.append(float(loss.detach().mean()))
        found = v.detach()
        scores = chances(target, concept, found, like, self.ranking, like.steps, generator(seed, "ranking")).mean(1)
        order = scores.argsort(descending=True, stable=True)
        best = tuple(replace(like, prompt="", context=Context(found[i : i + 1].clone())) for i in order)
        return Finding(best, tuple(scores[order].tolist()), cost=self.cost(like), about={"loss": history})

    def cost(self, like: Query) -> dict[str, int]:
        """Return images drawn, calls of the denoiser, and how many of them were also differentiated."""
        tries = self.restarts * self.iterations * self.draws
        ranking, calls = self.restarts * self.ranking, tries * (self.steps if self.through == "sampler" else 1)
        drawn = tries if self.through == "sampler" else self.images
        extra = 0 if self.through == "sampler" else self.images * like.steps
        total = calls + extra + ranking * like.steps
        return {"images": drawn + ranking, "calls": total, "backward": calls}

    def _sampler(self, target: Target, concept: Concept, like: Query) -> Any:
        """Return (contexts, rng) -> −log of the judge's probability of the concept, mean over the draws."""

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            asked = asking(c, like, self.draws, self.steps, rng)
            images = target.edited.decode(target.edited.sample(asked, grad=True))
            seen = target.seen(images, concept).view(len(c), self.draws)
            if not seen.requires_grad:
                raise BadInput("this judge cannot be differentiated: use through eps")
            return -seen.clamp(min=1e-12).log().mean(1)

        return loss

    def _eps(self, target: Target, concept: Concept, like: Query) -> Any:
        """Return (contexts, rng) -> ‖ε_θ(x_t, c) − ε‖² over noised pictures of the concept, mean over the draws."""
        if target.original is None:
            raise BadInput("through eps needs the original model, which draws the concept")
        text = concept.texts[0]
        clean = target.original.sample([replace(like, prompt=text, seed=seed) for seed in range(self.images)])
        model = replace(target.edited, guards=())
        schedule = model.family.schedule

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            n = len(c) * self.draws
            x, t = clean[torch.randint(len(clean), (n,), generator=rng)], schedule.random_times(n, rng)
            noise = torch.randn(x.shape, generator=rng)
            asked = Context(c.repeat_interleave(self.draws, 0))
            guess = model.eps(schedule.noised(x, noise, t), t, asked)
            return (guess - noise).square().mean((1, 2, 3)).view(len(c), self.draws).mean(1)

        return loss
