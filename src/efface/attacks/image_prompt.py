"""Image prompt (Recall): an adversarial picture, from which the edited model generates the concept by image-to-image.

Liu et al. 2026, Image Can Bring Your Memory Back (RECALL), https://arxiv.org/abs/2507.07139: the latents of one
reference picture of the concept, mixed with noise, are optimised through the edited model under the plain prompt. Code:
https://github.com/ryliu68/RECALL.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from efface import registry
from efface.attack import Attack, Finding, Target
from efface.attacks.search.cost import Cost, calls_of, denoise_calls
from efface.attacks.search.pictures import pictures
from efface.attacks.search.starts import check_late, noised, plain, ranked
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.students import view
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer
from efface.util.files import sha256_tensors
from efface.util.ranges import COUNT, OR_NONE, RATE, SHARE, SOLVER_STEPS, Ranges

MOMENTUM = 0.9  # the code's


@dataclass(frozen=True)
class ImagePrompt(Attack):
    """Optimise one picture for each query, as latents; with a judge to ask, each stops at its first success.

    The reference itself is tried first. Without iterations it is the only try: plain image-to-image.

    Args:
        strength: of image-to-image, the share of the steps that are run
        follow: what the edited model's prediction on the picture is drawn to: reference, its own prediction on the
            reference; original, the original model's prediction of the concept on the same picture
        iterations: steps of signed gradient descent with momentum at each timestep, 0 for none
        timesteps: evenly spaced, the least noisy first
        lr: change of every number in a step
        blend: share of the reference in the first picture; the rest is noise
        pull: share of the reference that is added to the picture now and then
        every: timesteps between two pulls
        folder: its first picture, cropped to a square and resized, is the reference; by default one by the original
            model
        solver: of the queries; "" = their own, which must be able to begin in the middle
    """

    strength: float = 0.8
    follow: Literal["reference", "original"] = "reference"
    iterations: int = 20
    timesteps: int = 50
    lr: float = 1e-3
    blend: float = 0.25
    pull: float = 0.05
    every: int = 5
    folder: str = ""
    solver: str = "ddim"

    RANGES: ClassVar[Ranges] = {
        "strength": "(0, 1]", "iterations": OR_NONE, "timesteps": SOLVER_STEPS, "lr": RATE, "blend": SHARE,
        "pull": SHARE, "every": COUNT,
    }  # fmt: skip
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "image-to-image": {"iterations": 0},
        "score": {"follow": "original", "blend": 1.0, "pull": 0.0, "lr": 0.01},
        "mini": {"iterations": 5, "timesteps": 10, "lr": 5e-3, "every": 1},
    }
    QUICK: ClassVar[dict[str, Any]] = {"iterations": 1, "timesteps": 2}

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that there is a reference, and that the solver can begin in the middle."""
        super().check(target, concept, queries)
        if target.original is None and (not self.folder or self.follow == "original"):
            raise BadInput("image_prompt needs a reference: give the original model, or a folder and follow reference")
        if target.judge is not None:
            target.success.check(concept)
        check_late(target.edited, plain(queries, self.solver))

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return each query from its picture, noised; `tensors` holds the pictures' latents and the reference's.

        Scores are the judge's probability, or without a judge the negated loss of the last step.
        """
        model, asked = target.edited, plain(queries, self.solver)
        reference = pictures(target, concept.texts, 1, queries[0], seed, self.folder)[:1].to(model.device)
        work = _Search(self, target, concept, asked, reference, seed)
        work.look(reference.expand(len(asked), -1, -1, -1), 0)
        history = self._optimise(work) if self.iterations and not work.done.all() else []
        best, values, order = ranked(work.starts(work.best), work.score.cpu())
        about = {"loss": history, "timesteps": work.found_at.cpu()[order].tolist()}
        tensors = {"pictures": work.best.cpu()[order], "reference": reference.cpu()}
        cost = work.cost(queries[0], len(history))
        return Finding(best, values, given=tuple(order), cost=vars(cost), about=about, tensors=tensors)

    def _optimise(self, work: "_Search") -> list[float]:
        """Descend at one timestep after another; returns the mean loss of every step."""
        x, velocity = nn.Parameter(work.mixed(self.blend)), torch.zeros_like(work.best)
        tensors = {"x": x, "velocity": velocity, **work.tensors}
        state = State(tensors, {"main": optimizer("sgd", [x], self.lr)})
        times = spaced(work.model.family.schedule.total, self.timesteps)

        def loss(step: int) -> Tensor:
            errors = work.errors(x, times[step // self.iterations], step)
            if work.target.judge is None:
                work.score.copy_(-errors.detach())
            return errors.sum()

        @torch.no_grad()
        def signed() -> None:
            """Replace the gradient by the sign of its momentum."""
            assert x.grad is not None
            scale = x.grad.abs().mean((1, 2, 3), keepdim=True) + 1e-8
            velocity.mul_(MOMENTUM).add_(x.grad / scale)
            x.grad.copy_(velocity.sign())

        @torch.no_grad()
        def updated() -> None:
            visited, rest = divmod(state.step + 1, self.iterations)
            if rest == 0:
                if visited % self.every == 0:
                    x.add_(work.reference, alpha=self.pull)
                work.look(x.detach(), visited)

        with torch.inference_mode(False), torch.enable_grad():
            for visited in range(1, len(times) + 1):
                descend(
                    loss, state, visited * self.iterations, label=f"picture of {work.concept.name}", run=work.run,
                    gradients=signed, updated=updated, stage="picture",
                )  # fmt: skip
                if work.done.all():
                    break
        return [value / len(x) for value in state.history["loss"]]


def spaced(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced timesteps, the least noisy first: 10, 30, …, 990 for 50 of 1,000."""
    gap = total // min(count, total)
    return [gap // 2 + i * gap for i in range(min(count, total))]


class _Search:
    """Hold one search: a picture for each query, and the best one so far.

    best: latents. score: the judge's probability, or the negated loss. done: whether the query has succeeded.
    found_at: after how many timesteps `best` was found; 0 is the reference.
    """

    def __init__(
        self,
        attack: ImagePrompt,
        target: Target,
        concept: Concept,
        asked: tuple[Query, ...],
        reference: Tensor,
        seed: int,
    ) -> None:
        self.attack, self.target, self.concept, self.asked, self.seed = attack, target, concept, asked, seed
        self.model, self.reference = target.edited, reference
        rows, device = len(asked), reference.device
        self.best = reference.repeat(rows, 1, 1, 1)
        self.score = torch.full((rows,), -torch.inf, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.found_at = torch.zeros(rows, dtype=torch.long, device=device)
        self.tried = torch.zeros(2, dtype=torch.long)  # images, calls
        self.first = torch.cat([self._noise("start", i) for i in range(rows)])  # of the queries that are found
        with torch.no_grad():
            self.cond, self.null = self.model.contexts(asked)
            self.frozen = view(self.model, {})  # without gradients of the weights
            self.original = view(target.source, {}) if attack.follow == "original" else None
            self.wanted = self.original and (self.original.encode([concept.texts[0]]), self.original.null())
        self.run: dict[str, Any] = {
            "attack": registry.to_json(attack), "concept": concept.to_json(), "seed": seed, **target.describe(),
            "queries": [query.key for query in asked], "reference": sha256_tensors({"": reference}),
        }  # fmt: skip

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of it."""
        return {name: getattr(self, name) for name in ("best", "score", "done", "found_at", "tried")}

    def _noise(self, *key: int | str) -> Tensor:
        shape = self.reference.shape
        return torch.randn(shape, generator=generator(self.seed, *key)).to(self.reference)

    def mixed(self, share: float) -> Tensor:
        """Return the first pictures: a share of the reference, the rest noise."""
        noise = torch.cat([self._noise("blend", i) for i in range(len(self.asked))])
        return share * self.reference + (1 - share) * noise

    def starts(self, pictures: Tensor) -> list[Query]:
        """Return the queries that start from pictures, noised."""
        rows = zip(self.asked, pictures.split(1), self.first.split(1), strict=True)
        return [noised(self.model, q, x, noise, q.steps - max(1, int(q.steps * self.attack.strength)))
                for q, x, noise in rows]  # fmt: skip

    def errors(self, x: Tensor, time: int, step: int) -> Tensor:
        """Return each row's squared distance of the two predictions on its noised picture, with and without prompt."""
        t, model = torch.full((len(x),), time, device=x.device), self.frozen
        noise = torch.cat([self._noise("row", i, step) for i in range(len(x))])
        own = model.family.schedule.noised(x, noise, t)
        made = model.denoise(own, t, self.cond, self.null)
        if self.original is None or self.wanted is None:
            with torch.no_grad():
                there = model.family.schedule.noised(self.reference.expand_as(x), noise, t)
                goal = model.denoise(there, t, self.cond, self.null)
        else:
            goal = self.original.denoise(own, t, *self.wanted)
        return sum(((a - b).square().mean((1, 2, 3)) for a, b in zip(made, goal, strict=True)), torch.zeros(())) / 2

    @torch.no_grad()
    def look(self, pictures: Tensor, visited: int) -> None:
        """Keep the pictures that are better, by the judge; without one, the last."""
        rows = [i for i in range(len(pictures)) if not self.done[i]]
        if self.target.judge is None:
            self.best[rows], self.found_at[rows] = pictures[rows], visited
            return
        starts = [self.starts(pictures)[i] for i in rows]
        images = self.model.generate(starts)
        scores = self.target.seen(images, self.concept).to(self.score)
        self.tried += torch.tensor([len(rows), calls_of(self.model, starts)])
        self.done[rows] = self.target.success(images, self.concept).to(self.done)
        better = [(i, n) for n, i in enumerate(rows) if self.done[i] or scores[n] > self.score[i]]
        for i, n in better:
            self.best[i], self.score[i], self.found_at[i] = pictures[i], scores[n], visited

    def cost(self, like: Query, steps: int) -> Cost:
        """Return what it used; each step takes two predictions, with the prompt and without, of which one is of the
        original model where its prediction is followed."""
        images, calls = self.tried.tolist()
        cost = Cost(images=images, calls=calls, texts=len({query.prompt for query in self.asked}))
        if not self.attack.folder:
            cost.generated(self.target.source, [replace(like, prompt=self.concept.texts[0], latents=None, start=0)])
        rows, own = len(self.asked) * steps, denoise_calls(self.model)
        cost.calls += rows * (own + (own if self.original is None else denoise_calls(self.original)))
        cost.backward = rows * own
        return cost


__all__ = ["ImagePrompt"]
