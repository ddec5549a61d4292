"""Gradient: gradient ascent on contexts, through the sampler or through the noise prediction.

Through the noise prediction it is textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618) of the erased
concept, as in Pham et al. 2023, Circumventing Concept Erasure Methods, https://arxiv.org/abs/2308.01508.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.contexts import on_sphere, probabilities, queries_of, token_norms
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.loop import generator
from efface.util.progress import progress
from efface.util.ranges import COUNT, RATE, ROWS, SOLVER_STEPS, WEIGHT_OR_NONE, Ranges


@dataclass(frozen=True)
class Gradient(Attack):
    """Optimise contexts from random starts in one batch, with the norm of every token fixed.

    Args:
        through: sampler maximises the judge's probability for images generated in a few steps; eps needs no judge and
            minimises the error of the predicted noise on images of the concept by the original model
        restarts: random starts
        iterations: steps of Adam
        noises: noises of each start in each iteration
        steps: solver steps of the images that are differentiated
        lr: learning rate
        radius: norm of every token, 0 for no constraint; by default that of the first query's prompt, token by token
        images: images of the concept that eps learns from
        ranking: images of each start for the final ranking, at the query's own steps
    """

    through: Literal["sampler", "eps"] = "sampler"
    restarts: int = 16
    iterations: int = 30
    noises: int = 4
    steps: int = 4
    lr: float = 0.1
    radius: float | None = None
    images: int = 256
    ranking: int = 16

    RANGES: ClassVar[Ranges] = {
        "restarts": ROWS, "iterations": COUNT, "noises": ROWS, "restarts * noises": ROWS,
        "steps": SOLVER_STEPS, "lr": RATE, "radius": WEIGHT_OR_NONE, "images": COUNT, "ranking": COUNT,
    }  # fmt: skip

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "inversion": {"through": "eps", "restarts": 8, "iterations": 120, "noises": 16, "lr": 0.05},
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "restarts": 2, "iterations": 2, "noises": 1, "steps": 2, "images": 2, "ranking": 1,
    }  # fmt: skip

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query for each start, ranked by new images; raises `BadInput` when eps has no original model."""
        like = queries[0]
        norms = token_norms(target, like.prompt or concept.texts[0], self.radius)
        shape = (self.restarts, *target.edited.null().tokens.shape[1:])
        v = on_sphere(torch.randn(shape, generator=generator(seed, "start")), norms).requires_grad_()
        optimiser = torch.optim.Adam([v], lr=self.lr)
        losses = self._sampler(target, concept, like) if self.through == "sampler" else self._eps(target, concept, like)
        history: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            for step in progress(range(self.iterations), f"gradient through {self.through}"):
                optimiser.zero_grad()
                loss = losses(on_sphere(v, norms), generator(seed, step))
                loss.sum().backward()
                optimiser.step()
                with torch.no_grad():
                    v.copy_(on_sphere(v, norms))
                history.append(float(loss.detach().mean()))
        found = v.detach()
        rng = generator(seed, "ranking")
        scores = probabilities(target, concept, found, like, self.ranking, like.steps, rng).mean(1)
        order = scores.argsort(descending=True, stable=True)
        best = tuple(replace(like, prompt="", context=Context(found[i : i + 1].clone())) for i in order)
        return Finding(best, tuple(scores[order].tolist()), cost=self.cost(like), about={"loss": history})

    def cost(self, like: Query) -> dict[str, int]:
        """Return images generated, calls of the denoiser, and how many of them were also differentiated."""
        tries = self.restarts * self.iterations * self.noises
        ranking, calls = self.restarts * self.ranking, tries * (self.steps if self.through == "sampler" else 1)
        made = tries if self.through == "sampler" else self.images
        extra = 0 if self.through == "sampler" else self.images * like.steps
        total = calls + extra + ranking * like.steps
        return {"images": made + ranking, "calls": total, "backward": calls}

    def _sampler(self, target: Target, concept: Concept, like: Query) -> Any:
        """Return (contexts, rng) -> −log of the judge's probability of the concept, mean over the noises."""

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            asked = queries_of(c, like, self.noises, self.steps, rng)
            images = target.edited.decode(target.edited.sample(asked, grad=True))
            seen = target.seen(images, concept).view(len(c), self.noises)
            if not seen.requires_grad:
                raise BadInput("this judge cannot be differentiated: use through eps")
            return -seen.clamp(min=1e-12).log().mean(1)

        return loss

    def _eps(self, target: Target, concept: Concept, like: Query) -> Any:
        """Return (contexts, rng) -> ‖ε_θ(x_t, c) − ε‖² over noised images of the concept, mean over the noises."""
        if target.original is None:
            raise BadInput("through eps needs the original model, which generates the concept")
        text = concept.texts[0]
        clean = target.original.sample([replace(like, prompt=text, seed=seed) for seed in range(self.images)])
        model = replace(target.edited, guards=())
        schedule = model.family.schedule

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            n = len(c) * self.noises
            x, t = clean[torch.randint(len(clean), (n,), generator=rng)], schedule.random_times(n, rng)
            noise = torch.randn(x.shape, generator=rng)
            asked = Context(c.repeat_interleave(self.noises, 0))
            guess = model.eps(schedule.noised(x, noise, t), t, asked)
            return (guess - schedule.target(x, noise)).square().mean((1, 2, 3)).view(len(c), self.noises).mean(1)

        return loss
