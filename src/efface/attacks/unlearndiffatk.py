"""UnlearnDiffAtk: search for tokens before a prompt with which the edited model denoises an image of the concept.

Zhang et al., To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images …
For Now, ECCV 2024, https://arxiv.org/abs/2310.11868. Code: https://github.com/OPTML-Group/Diffusion-MU-Attack, which
also holds another P4D than its authors' (`p4d-uda`); most papers that report "P4D" used that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Finding, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.frames import Frame, alone, prefix
from efface.attacks.search.objective import Loss, Objective
from efface.attacks.search.outcome import Found, finding
from efface.attacks.search.relaxations import Nearest, Relaxation, Simplex
from efface.attacks.search.rows import Rows, plain, rows_of
from efface.attacks.search.token_search import Plan, Search, TokenSearch
from efface.attacks.search.vocabulary import Asked, Vocabulary
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.checkpoints import current
from efface.training.loop import generator
from efface.util.ranges import COUNT, Ranges


@dataclass(frozen=True)
class UnlearnDiffAtk(TokenSearch):
    """Search for a few tokens before each prompt, timestep by timestep, until an image shows the concept.

    The prompt itself is tried first: queries that succeed so are counted, and marked "before" in the finding. After
    each timestep one image of the most probable tokens is generated with the query's own seed.

    Args:
        tokens: free tokens; 0 = 5 for an unsafe concept and 3 for any other, as in the paper
        place: prefix puts them before the prompt; alone searches a prompt of free tokens only
        relaxation: simplex learns a distribution over the vocabulary; nearest a vector that is projected to its token
        optimizer: the decay of adam is part of the gradient, that of adamw is not
        loss: noise regresses the noise in the original model's image of the prompt; score matches its prediction for
            the prompt; auto is score against guards, where noise has nothing to learn from
        timesteps: at which the loss is taken one after another, equally spaced: 10, 30, …, 990 for 50 of 1,000
        iterations: steps at each timestep
    """

    tokens: int = 0  # k: 5 for nudity, 3 for styles and objects
    place: Literal["prefix", "alone"] = "prefix"
    relaxation: Literal["simplex", "nearest"] = "simplex"
    optimizer: Literal["adam", "adamw"] = "adam"
    loss: Loss = "auto"
    timesteps: int = 50
    iterations: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1

    RANGES: ClassVar[Ranges] = {"tokens": "[0, 75]", "timesteps": "[1, 1000]", "iterations": COUNT}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"fragments": True},
        "p4d-uda": {"relaxation": "nearest", "loss": "score", "fragments": True},  # hard_prompt_*_P4D.json
        "p4d": {  # the authors' own P4D-N, in this protocol
            "tokens": 16, "place": "alone", "relaxation": "nearest", "optimizer": "adamw", "loss": "score", "lr": 0.1,
            "fragments": True,
        },
        "mini": {"timesteps": 8, "iterations": 5, "lr": 0.1, "earlier": 2},
    }  # fmt: skip
    QUICK: ClassVar[dict[str, Any]] = {"tokens": 1, "timesteps": 1, "iterations": 2, "earlier": 1}

    def frame(self, concept: Concept, ids: Sequence[int]) -> Frame:
        """Return the prompt with free tokens before it, or free tokens only."""
        count = self.tokens or (5 if concept.kind == "unsafe" else 3)
        return alone(count) if self.place == "alone" else prefix(ids, count)

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check also that the model has as many timesteps."""
        super().check(target, concept, queries)
        total = target.edited.family.schedule.total
        if self.timesteps > total:
            raise BadInput(f"timesteps must be at most the model's {total}, got {self.timesteps}")

    def times(self, total: int) -> tuple[int, ...]:
        """Return the timesteps, in the order they are used."""
        gap = total // self.timesteps
        return tuple(gap // 2 + i * gap for i in range(self.timesteps))

    @torch.inference_mode(False)
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return for each query the first prompt that succeeded, else the best; scores are by the asked judge."""
        given = plain(concept, queries)
        ids = [tuple(ids_of(target.edited, query.prompt)) for query in given]
        frames = [self.frame(concept, one) for one in ids]
        rows, vocabulary, cost = rows_of(target, given, frames), self.vocabulary(target, concept), Cost()
        cost.generated(target.source, given)
        times = self.times(target.edited.family.schedule.total)
        plan = Plan((self.iterations,) * self.timesteps, times, self.optimizer)
        guidance = self.guidance if target.edited.guards else 1.0
        objective = Objective(target, rows.clean, self.loss, None, guidance)

        def rate(images: Float[Tensor, "r 3 h w"], _: list[int]) -> Float[Tensor, " r"]:
            return target.seen(images, concept)

        found: dict[int, Found] = {}
        for number, shape in enumerate(dict.fromkeys(frame.shape for frame in frames)):
            chosen = [i for i, frame in enumerate(frames) if frame.shape == shape]
            own = rows.only(chosen)
            relaxed = self._relaxation(vocabulary, own, len(shape[1]), seed)
            run = Search(
                self, target, concept, own, vocabulary, relaxed, objective, plan, rate, seed,
                f"unlearndiffatk-{number}", cost,
            )  # fmt: skip
            found |= dict(zip(chosen, run(_before(run, [ids[i] for i in chosen])), strict=True))
        return finding(concept, [found[i] for i in range(len(given))], [query.prompt for query in given], cost)

    def _relaxation(self, vocabulary: Vocabulary, rows: Rows, count: int, seed: int) -> Relaxation:
        if self.relaxation == "simplex":
            return Simplex(vocabulary, len(rows.queries), count)
        rngs = [generator(seed, "start", query.prompt, query.seed) for query in rows.queries]
        return Nearest(vocabulary, torch.stack([vocabulary.random((count,), rng) for rng in rngs]))


def _before(run: Search, ids: Sequence[tuple[int, ...]]) -> dict[int, Found]:
    """Return the rows whose prompt itself succeeds."""
    queries, stored = run.rows.queries, current()

    def make() -> dict[str, Tensor]:
        success, scores = run.judged(queries, list(range(len(queries))))
        return {"success": success, "scores": scores}

    seen = stored.once(f"{run.stage}-before", run.about, make) if stored else make()
    run.cost.generated(run.target.edited, queries)
    pairs = zip(queries, ids, seen["success"].tolist(), seen["scores"].tolist(), strict=True)
    return {
        i: Found(Asked(query, True), own, True, score, -1)
        for i, (query, own, shown, score) in enumerate(pairs)
        if shown
    }
