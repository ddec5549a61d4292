"""Grid: exhaustive search over a grid of contexts, by successive halving.

The exhaustive search of Pham et al. 2024, Robust Concept Erasure Using Task Vectors, section 3.3,
https://arxiv.org/abs/2404.03631; halving after Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.contexts import Span, Tokens, check_rounds, probabilities, span
from efface.attacks.search.cost import Cost, calls_of
from efface.attacks.search.lattice import points
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.checkpoints import current
from efface.training.loop import generator
from efface.util.files import sha256_tensors
from efface.util.progress import progress
from efface.util.ranges import COUNT, OR_NONE, SHARE, WEIGHT_OR_NONE, Ranges

MAX_POINTS = 4_000_000
RESAMPLES = 2000  # of the replays, for the chance of being dropped


@dataclass(frozen=True)
class Grid(Attack):
    """Try every context of a grid with few steps; repeat the best with more steps and images in each round.

    Where a prompt is one vector (the digits), the grid is over its numbers. Elsewhere it is over the mixtures of the
    prompts of all queries: every prompt is a direction away from no prompt.

    The first round is blind to prompts that succeed less often than it draws images. So it draws more of every context
    where the concept is rare, and what it misses is measured: the finalists go through all rounds but the last again,
    with fresh noise.

    Args:
        values: values that each coefficient takes, equally spaced from -1 to 1
        radius: norm that every context is scaled to, 0 for none; by default the mean norm of the directions
        steps: solver steps in each round, 0 for the query's own
        images: images of each context in each round, every one from its own noise
        survivors: contexts left after each round
        more: the most times that the first round is drawn; it is drawn until the mean score times the number of draws
            reaches `rare`
        rare: mean number of successes in the draws of a context of the first round, below which it is drawn again
        replays: new images of each finalist at each round's steps, from which its chance of being dropped is counted;
            0: not
        chunk: contexts between two checkpoints
    """

    values: int = 5
    radius: float | None = None
    steps: tuple[int, ...] = (3, 8, 0)
    images: tuple[int, ...] = (1, 8, 32)
    survivors: tuple[int, ...] = (4096, 256, 16)
    more: int = 4
    rare: float = 0.05
    replays: int = 16
    chunk: int = 16384

    RANGES: ClassVar[Ranges] = {
        "values": "[2, 127]", "radius": WEIGHT_OR_NONE, "steps": "[0, 1000]", "images": COUNT,
        "survivors": COUNT, "chunk": COUNT, "more": "[1, 1000]", "rare": SHARE, "replays": OR_NONE,
    }  # fmt: skip

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"steps": (0,), "images": (32,), "survivors": (16,), "more": 1, "replays": 0},
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "values": 2, "steps": (1, 2), "images": (1, 2), "survivors": (8, 2), "more": 1, "replays": 1,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self.steps, self.images, self.survivors)

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the best contexts of the last round.

        `about` holds for each round how many contexts entered it, the score of the last survivor and the share of the
        contexts with just that score that survived; and as `missed` what `missed` returns. Raises `BadInput` for more
        than 4 million points, and for queries whose prompts span no grid.
        """
        contexts = span(target, queries, self.radius)
        width = len(contexts.directions)
        if self.values**width > MAX_POINTS:
            raise BadInput(
                f"a grid of {self.values} values over {width} coefficients has {self.values**width:,} points: "
                f"at most {MAX_POINTS:,} can be tried"
            )
        found, rounds, scores = points(self.values, width), [], torch.empty(0)
        for number, count in enumerate(self.survivors):
            like = replace(queries[0], steps=self.steps[number] or queries[0].steps)
            scores, draws, seconds = self._round(target, concept, contexts, found, like, number, seed)
            shuffled = torch.randperm(len(found), generator=generator(seed, number, "ties"))
            order = shuffled[scores[shuffled].argsort(descending=True, stable=True)][:count]
            last = scores[order[-1]]
            tied = float((scores[order] == last).sum() / (scores == last).sum())
            entered, found, scores = len(found), found[order], scores[order]
            rounds.append(
                {"contexts": entered, "images": entered * draws, "per_context": draws}
                | {"steps": like.steps, "survivors": len(found), "last_survivor": float(scores[-1]), "tied": tied}
                | {"best": float(scores[0]), "seconds": seconds}
            )
        about: dict[str, Any] = {"rounds": rounds}
        cost = Cost(texts=len({query.prompt for query in queries}))

        def drawn(images: int, steps: int) -> None:
            cost.images += images
            plain = replace(queries[0], steps=steps, latents=None, start=0)
            cost.calls += images * calls_of(target.edited, [plain])

        for one in rounds:
            drawn(one["images"], one["steps"])
        if self.replays:
            about["missed"] = self.missed(target, concept, contexts(found), queries[0], rounds, seed)
            for one in rounds[:-1]:
                drawn(len(found) * self.replays, one["steps"])
        best = tuple(replace(queries[0], prompt="", context=Context(row[None])) for row in contexts(found))
        return Finding(best, tuple(scores.tolist()), cost=vars(cost), about=about)

    def missed(
        self,
        target: Target,
        concept: Concept,
        contexts: Tokens,
        like: Query,
        rounds: Sequence[Mapping[str, Any]],
        seed: int,
    ) -> dict[str, Any]:
        """Return how often screening would drop contexts such as these, best first, from `replays` images of each.

        {"each": for every one, "best_five": that the five best are all dropped}. A round drops a context when the
        mean of its draws is below the score of the last survivor, or equal to it and not among those taken. Those
        given have passed once already, so the estimate is too low for contexts that are unlike them.
        """
        passed = torch.ones(len(contexts), dtype=torch.float64)
        for number, made in enumerate(rounds[:-1]):
            rng = generator(seed, "replay", number)
            pool = probabilities(target, concept, contexts, like, self.replays, int(made["steps"]), rng)
            rows = torch.randint(self.replays, (len(contexts), RESAMPLES, int(made["per_context"])), generator=rng)
            means = pool[torch.arange(len(contexts))[:, None, None], rows].mean(-1)
            last = torch.tensor(made["last_survivor"], dtype=means.dtype)
            passed *= ((means > last) + made["tied"] * (means == last)).double().mean(1)
        each = 1 - passed
        return {"each": each.tolist(), "best_five": float(each[:5].prod())}

    def _round(
        self,
        target: Target,
        concept: Concept,
        contexts: Span,
        rows: Float[Tensor, "n k"],
        like: Query,
        number: int,
        seed: int,
    ) -> tuple[Float[Tensor, " n"], int, float]:
        """Return the mean probability of the concept for every row, images of each, and seconds."""
        draws = self.images[number]
        scores, seconds = self._scores(target, concept, contexts, rows, like, number, draws, seed)
        if number or self.more == 1:
            return scores, draws, seconds
        times = min(self.more, math.ceil(self.rare / (draws * max(float(scores.mean()), 1e-9))))
        if times > 1:
            again, more = self._scores(target, concept, contexts, rows, like, -1, draws * (times - 1), seed)
            scores, seconds = (scores + (times - 1) * again) / times, seconds + more
        return scores, draws * times, seconds

    def _scores(
        self,
        target: Target,
        concept: Concept,
        contexts: Span,
        rows: Float[Tensor, "n k"],
        like: Query,
        number: int,
        draws: int,
        seed: int,
    ) -> tuple[Float[Tensor, " n"], float]:
        """Return the mean probability of the concept for every row, and the seconds it took.

        number: of the round, -1 for the first one drawn again.

        Every chunk is stored with its seconds, so that a search can be resumed.
        """
        stored, parts = current(), []
        about = {"values": self.values, "round": number, "steps": like.steps, "images": draws}
        about |= {"seed": seed, **target.describe(), "concept": concept.to_json(), "count": len(rows)}
        about |= {"like": replace(like, prompt="").key}
        about |= {
            "chunk": self.chunk,
            "directions": sha256_tensors({"": contexts.directions}),
            "radius": contexts.radius,
        }
        for i in progress(range(0, len(rows), self.chunk), f"{self.values} values, round {number + 1}"):

            def measure(i: int = i) -> dict[str, Tensor]:
                began, rng = time.perf_counter(), generator(seed, number, i)
                chunk = contexts(rows[i : i + self.chunk])
                scores = probabilities(target, concept, chunk, like, draws, like.steps, rng).mean(1)
                return {"scores": scores, "seconds": torch.tensor(time.perf_counter() - began)}

            stage = f"grid{self.values}-{number}-{i // self.chunk}"
            parts.append(stored.once(stage, about, measure) if stored else measure())
        return torch.cat([part["scores"] for part in parts]), float(sum(part["seconds"] for part in parts))
