"""Gradient: gradient ascent on contexts, through the sampler or through the noise prediction.

Through the noise prediction it is textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618) of the erased
concept, as in Pham et al. 2023, Circumventing Concept Erasure Methods, https://arxiv.org/abs/2308.01508.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.contexts import on_sphere, probabilities, queries_of, span, token_norms
from efface.attacks.search.cost import Cost, calls_of
from efface.attacks.search.lattice import points
from efface.attacks.search.objective import Objective
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.loop import generator
from efface.util.progress import progress
from efface.util.ranges import COUNT, OR_NONE, RATE, ROWS, SOLVER_STEPS, WEIGHT_OR_NONE, Ranges

Losses = Callable[[Tensor, torch.Generator], Tensor]  # contexts (r, len, dim), random numbers -> losses (r)


@dataclass(frozen=True)
class Gradient(Attack):
    """Optimise contexts from several starts in one batch, with the norm of every token fixed.

    Where a prompt is one vector (the digits), half of the starts are the points of a coarse grid with the least loss;
    the others, and all starts of other models, are random. The ends are ranked twice: all, then the best with more
    images.

    Args:
        through: sampler maximises the judge's probability for images generated in a few steps; eps needs no judge and
            minimises the error of the predicted noise on images of the concept by the original model, or, under a guard
            that acts on guidance, the distance to the original model's guided prediction of the concept
        restarts: starts
        coarse: values of each number in the grid of starts, 0 for random starts only
        iterations: steps of Adam
        noises: noises of each start in each iteration, and of each point of the grid
        steps: solver steps of the images that are differentiated
        lr: learning rate
        radius: norm of every token, 0 for no constraint; by default that of the first query's prompt, token by token
        images: images of the concept that eps learns from
        ranking: images of each start for the first ranking, at the query's own steps
        finalists: starts that are ranked again
        final: images of each of them for the second ranking, 0 for none
    """

    through: Literal["sampler", "eps"] = "sampler"
    restarts: int = 16
    coarse: int = 2
    iterations: int = 20
    noises: int = 6
    steps: int = 4
    lr: float = 0.1
    radius: float | None = None
    images: int = 256
    ranking: int = 16
    finalists: int = 4
    final: int = 128

    RANGES: ClassVar[Ranges] = {
        "restarts": ROWS, "iterations": COUNT, "noises": ROWS, "restarts * noises": ROWS,
        "steps": SOLVER_STEPS, "lr": RATE, "radius": WEIGHT_OR_NONE, "images": COUNT, "ranking": COUNT,
        "coarse": "[0, 5]", "finalists": COUNT, "final": OR_NONE,
    }  # fmt: skip

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "inversion": {
            "through": "eps",
            "restarts": 8,
            "coarse": 0,
            "iterations": 120,
            "noises": 16,
            "lr": 0.05,
            "final": 0,
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "restarts": 2, "coarse": 0, "iterations": 2, "noises": 1, "steps": 2, "images": 2, "ranking": 1, "final": 0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse == 1:
            raise BadInput("coarse must be 0, or at least 2 values of each number, got 1")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query for each start, ranked by new images; raises `BadInput` when eps has no original model."""
        like = queries[0]
        norms = token_norms(target, like.prompt or concept.texts[0], self.radius)
        objective = None if self.through == "sampler" else self._objective(target, concept, like, seed)
        losses = self._eps(objective) if objective else self._sampler(target, concept, like)
        grid = self._grid(target, queries)
        v = on_sphere(self._starts(target, losses, grid, seed), norms).requires_grad_()
        optimiser = torch.optim.Adam([v], lr=self.lr)
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
        found, scores = self._ranked(target, concept, v.detach(), like, seed)
        best = tuple(replace(like, prompt="", context=Context(row[None].clone())) for row in found)
        cost = self._cost(target, objective, like, len(grid))
        about = {"loss": history, "from_grid": self._kept(grid)}
        return Finding(best, tuple(scores.tolist()), cost=vars(cost), about=about)

    def _cost(self, target: Target, objective: Objective | None, like: Query, points: int) -> Cost:
        """Return what a search uses; points: of the coarse grid."""
        tries, tried = self.restarts * self.iterations * self.noises, points * self.noises
        ranking = self.restarts * self.ranking + min(self.finalists, self.restarts) * self.final
        plain, cost = replace(like, prompt="", latents=None, start=0), Cost()
        cost.generated(target.edited, [plain] * ranking)
        if objective is None:
            each = calls_of(target.edited, [replace(plain, steps=self.steps)])
            cost.images += tries + tried
        else:
            each = objective.calls
            cost.generated(target.source, [plain] * self.images)
        cost.calls += (tries + tried) * each
        cost.backward = tries * each
        return cost

    def _grid(self, target: Target, queries: tuple[Query, ...]) -> Float[Tensor, "n len dim"]:
        """Return the contexts of the coarse grid, none for a model that reads several vectors."""
        null = target.edited.null().tokens
        if not self.coarse or null.shape[1] > 1:
            return torch.empty(0, *null.shape[1:], device=null.device)
        contexts = span(target, queries, self.radius)
        return contexts(points(self.coarse, len(contexts.directions)))

    def _kept(self, grid: Tensor) -> int:
        return min(self.restarts // 2, len(grid))

    @torch.no_grad()
    def _starts(self, target: Target, losses: Losses, grid: Tensor, seed: int) -> Float[Tensor, "r len dim"]:
        """Return the grid's points with the least loss, then random ones (standard normal)."""
        shape = (self.restarts, *target.edited.null().tokens.shape[1:])
        starts = torch.randn(shape, generator=generator(seed, "start")).to(target.edited.device)
        if count := self._kept(grid):
            parts = progress(grid.split(self.restarts), "coarse grid")
            seen = torch.cat([losses(part, generator(seed, "coarse", i)) for i, part in enumerate(parts)])
            starts[:count] = grid[seen.argsort(stable=True)[:count]]
        return starts

    def _ranked(
        self, target: Target, concept: Concept, found: Tensor, like: Query, seed: int
    ) -> tuple[Float[Tensor, "r len dim"], Float[Tensor, " r"]]:
        """Return contexts with their scores, best first: the finalists by their second ranking, then the others."""

        def scored(rows: Tensor, images: int, stage: str) -> tuple[Tensor, Tensor]:
            seen = probabilities(target, concept, rows, like, images, like.steps, generator(seed, stage)).mean(1)
            order = seen.argsort(descending=True, stable=True)
            return rows[order], seen[order]

        found, scores = scored(found, self.ranking, "ranking")
        if self.final:
            best, better = scored(found[: self.finalists], self.final, "final")
            found, scores = torch.cat([best, found[len(best) :]]), torch.cat([better, scores[len(best) :]])
        return found, scores

    def _sampler(self, target: Target, concept: Concept, like: Query) -> Losses:
        """Return (contexts, rng) -> −log of the judge's probability of the concept, mean over the noises."""

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            asked = queries_of(c, like, self.noises, self.steps, rng)
            images = target.edited.decode(target.edited.sample(asked, grad=c.requires_grad))
            seen = target.seen(images, concept).view(len(c), self.noises)
            if c.requires_grad and not seen.requires_grad:
                raise BadInput("this judge cannot be differentiated: use through eps")
            return -seen.clamp(min=1e-12).log().mean(1)

        return loss

    def _eps(self, objective: Objective) -> Losses:
        """Return (contexts, rng) -> the error of the predicted noise on images of the concept, mean over the noises."""
        with torch.no_grad():
            empty = objective.target.edited.encode([""])  # what else a model reads of a prompt is that of no prompt

        def loss(c: Float[Tensor, "r len dim"], rng: torch.Generator) -> Float[Tensor, " r"]:
            rngs = [generator(rng.initial_seed(), i) for i in range(len(c) * self.noises)]
            asked = replace(empty.expand(len(rngs)), tokens=c.repeat_interleave(self.noises, 0).to(empty.tokens))
            return objective(asked, objective.draw(rngs)).view(len(c), self.noises).mean(1)

        return loss

    def _objective(self, target: Target, concept: Concept, like: Query, seed: int) -> Objective:
        """Return the loss of contexts, at the query's own guidance where a guard acts on the guided prediction.

        Raises `BadInput` without the original model.
        """
        if target.original is None:
            raise BadInput("through eps needs the original model, which generates the concept")
        latents = pictures(target, concept.texts, self.images, like, seed)
        with torch.no_grad():
            wanted = target.source.encode(concept.texts)
        return Objective(target, latents, wanted=wanted, guidance=float(like.guidance))
