"""Grid: exhaustive search over a grid of contexts, by successive halving.

The exhaustive search of Pham et al. 2024, Robust Concept Erasure Using Task Vectors, section 3.3,
https://arxiv.org/abs/2404.03631; halving after Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.
"""

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.contexts import Span, check_rounds, probabilities, span
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.checkpoints import current
from efface.training.loop import generator
from efface.util.files import sha256_tensors
from efface.util.progress import progress
from efface.util.ranges import COUNT, WEIGHT_OR_NONE, Ranges

MAX_POINTS = 4_000_000


@dataclass(frozen=True)
class Grid(Attack):
    """Try every context of a grid with few steps; repeat the best with more steps and images in each round.

    Where a prompt is one vector (the digits), the grid is over its numbers. Elsewhere it is over the mixtures of the
    prompts of all queries: every prompt is a direction away from no prompt.

    Args:
        values: values that each coefficient takes, equally spaced from -1 to 1
        radius: norm that every context is scaled to, 0 for none; by default the mean norm of the directions
        steps: solver steps in each round, 0 for the query's own
        images: images of each context in each round, every one from its own noise
        survivors: contexts left after each round
        chunk: contexts between two checkpoints
    """

    values: int = 5
    radius: float | None = None
    steps: tuple[int, ...] = (3, 8, 0)
    images: tuple[int, ...] = (1, 8, 32)
    survivors: tuple[int, ...] = (4096, 256, 16)
    chunk: int = 16384

    RANGES: ClassVar[Ranges] = {
        "values": "[2, 127]", "radius": WEIGHT_OR_NONE, "steps": "[0, 1000]", "images": COUNT,
        "survivors": COUNT, "chunk": COUNT,
    }  # fmt: skip

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": (0,), "images": (32,), "survivors": (16,)}}
    QUICK: ClassVar[dict[str, Any]] = {"values": 2, "steps": (1, 2), "images": (1, 2), "survivors": (8, 2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self.steps, self.images, self.survivors)

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the best contexts of the last round.

        `about` holds, for each round, how many contexts entered it and the score of the last survivor. Raises
        `BadInput` for more than 4 million points, and for queries whose prompts span no grid.
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
            scores, seconds = self._scores(target, concept, contexts, found, like, number, seed)
            order = scores.argsort(descending=True, stable=True)[:count]
            entered, found, scores = len(found), found[order], scores[order]
            rounds.append(
                {"contexts": entered, "images": entered * self.images[number], "per_context": self.images[number]}
                | {"steps": like.steps, "survivors": len(found), "last_survivor": float(scores[-1])}
                | {"best": float(scores[0]), "seconds": seconds}
            )
        cost = {
            "images": sum(one["images"] for one in rounds),
            "calls": sum(one["images"] * one["steps"] for one in rounds),
        }
        best = tuple(replace(queries[0], prompt="", context=Context(row[None])) for row in contexts(found))
        return Finding(best, tuple(scores.tolist()), cost=cost, about={"rounds": rounds})

    def _scores(
        self,
        target: Target,
        concept: Concept,
        contexts: Span,
        rows: Float[Tensor, "n k"],
        like: Query,
        number: int,
        seed: int,
    ) -> tuple[Float[Tensor, " n"], float]:
        """Return the mean probability of the concept for every row, and the seconds it took.

        Every chunk is stored with its seconds, so that a search can be resumed.
        """
        stored, parts = current(), []
        about = {"values": self.values, "round": number, "steps": like.steps, "images": self.images[number]}
        about |= {"seed": seed, "model": target.edited.id, "concept": concept.name, "count": len(rows)}
        about |= {
            "chunk": self.chunk,
            "directions": sha256_tensors({"": contexts.directions}),
            "radius": contexts.radius,
        }
        for i in progress(range(0, len(rows), self.chunk), f"{self.values} values, round {number + 1}"):

            def measure(i: int = i) -> dict[str, Tensor]:
                began, rng = time.perf_counter(), generator(seed, number, i)
                chunk = contexts(rows[i : i + self.chunk])
                scores = probabilities(target, concept, chunk, like, self.images[number], like.steps, rng).mean(1)
                return {"scores": scores, "seconds": torch.tensor(time.perf_counter() - began)}

            stage = f"grid{self.values}-{number}-{i // self.chunk}"
            parts.append(stored.once(stage, about, measure) if stored else measure())
        return torch.cat([part["scores"] for part in parts]), float(sum(part["seconds"] for part in parts))


def points(values: int, width: int) -> Float[Tensor, "n width"]:
    """Return the grid's points, only one of those with the same direction.

    Coordinates are whole numbers, so a point is kept when its coordinates have no common divisor, in place of its
    multiples. A grid with an odd number of values has the zero vector.
    """
    rows = _integers(values, width)
    divisor = np.gcd.reduce(rows, axis=1)
    chosen = rows[(divisor == 1) | ~rows.any(1)]
    return torch.from_numpy(chosen.astype(np.float32))


def _integers(values: int, width: int) -> np.ndarray:
    """Return all values^width points with the smallest whole numbers that are equally spaced around 0."""
    numbers = np.arange(values) * 2 - (values - 1)
    if values % 2:
        numbers //= 2
    axes = np.meshgrid(*[numbers.astype(np.int8)] * width, indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], 1)
