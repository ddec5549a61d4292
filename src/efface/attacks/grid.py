"""Grid: tries every point of a grid of contexts, by successive halving.

The exhaustive search of Pham et al. 2024, Robust Concept Erasure Using Task Vectors, section 3.3,
https://arxiv.org/abs/2404.03631; halving after Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Finding, Target
from efface.attacks.search.contexts import chances, check_rungs, context_shape, on_sphere
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.training.loop import current, generator
from efface.util.progress import progress

MAX_POINTS = 4_000_000


@dataclass(frozen=True)
class Grid(Attack):
    """Draw every context of a grid with few steps, and the best again and again with more steps and more noise.

    Args:
        levels: values a number of the context takes, equally spaced from -1 to 1
        radius: norm that every context is brought to, 0 for as they are
        steps: solver steps in each rung, 0 for the query's own
        draws: pictures of each context in each rung, every one from its own noise
        keep: contexts left after each rung
        chunk: contexts between two checkpoints
    """

    levels: int = 5
    radius: float = 1.0
    steps: tuple[int, ...] = (3, 8, 0)
    draws: tuple[int, ...] = (1, 8, 32)
    keep: tuple[int, ...] = (4096, 256, 16)
    chunk: int = 16384

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"steps": (0,), "draws": (32,), "keep": (16,)}}
    QUICK: ClassVar[dict[str, Any]] = {"levels": 2, "steps": (1, 2), "draws": (1, 2), "keep": (8, 2)}

    def __post_init__(self) -> None:
        check_rungs(self.steps, self.draws, self.keep)
        if self.levels < 2 or self.chunk < 1 or self.radius < 0:
            raise BadInput(f"levels is at least 2, chunk 1, radius 0; got {self.levels}, {self.chunk}, {self.radius}")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the contexts that are left after the last rung.

        The queries after the first do not matter. `about` holds, for each rung, how many contexts entered it and the
        score of the last one kept. Raises `BadInput` for contexts of several tokens or more than 4 million points.
        """
        length, width = context_shape(target)
        if length != 1 or self.levels**width > MAX_POINTS:
            raise BadInput(
                f"a grid of {self.levels} levels over contexts of {length} × {width} numbers is too large: it takes "
                f"one token and at most {MAX_POINTS:,} points"
            )
        found = points(self.levels, width)
        rungs: list[Mapping[str, float]] = []
        scores = torch.empty(0)
        for rung, keep in enumerate(self.keep):
            like = replace(queries[0], steps=self.steps[rung] or queries[0].steps)
            scores, seconds = self._scores(target, concept, found, like, rung, seed)
            order = scores.argsort(descending=True, stable=True)[:keep]
            entered, found, scores = len(found), found[order], scores[order]
            images = entered * self.draws[rung]
            rungs.append(
                {"contexts": entered, "draws": self.draws[rung], "steps": like.steps, "kept": len(found)}
                | {"last_kept": float(scores[-1]), "best": float(scores[0]), "images": images, "seconds": seconds}
            )
        cost = {
            "images": sum(rung["images"] for rung in rungs),
            "calls": sum(rung["images"] * rung["steps"] for rung in rungs),
        }
        best = tuple(replace(queries[0], prompt="", context=Context(row[None])) for row in self._contexts(found))
        return Finding(best, tuple(scores.tolist()), cost=cost, about={"rungs": rungs})

    def _contexts(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n 1 dim"]:
        return on_sphere(rows[:, None], self.radius)

    def _scores(
        self, target: Target, concept: Concept, rows: Float[Tensor, "n dim"], like: Query, rung: int, seed: int
    ) -> tuple[Float[Tensor, " n"], float]:
        """Return the mean probability of the concept for every row, and the seconds it took.

        Every chunk is kept for a resumed search, its seconds too.
        """
        kept, parts = current(), []
        about = {"levels": self.levels, "rung": rung, "steps": like.steps, "draws": self.draws[rung], "seed": seed}
        about |= {"model": target.edited.id, "concept": concept.name, "count": len(rows), "chunk": self.chunk}
        for i in progress(range(0, len(rows), self.chunk), f"{self.levels} levels, rung {rung + 1}"):

            def draw(i: int = i) -> dict[str, Tensor]:
                began, rng = time.perf_counter(), generator(seed, rung, i)
                contexts = self._contexts(rows[i : i + self.chunk])
                scores = chances(target, concept, contexts, like, self.draws[rung], like.steps, rng).mean(1)
                return {"scores": scores, "seconds": torch.tensor(time.perf_counter() - began)}

            stage = f"grid{self.levels}-{rung}-{i // self.chunk}"
            parts.append(kept.once(stage, about, draw) if kept else draw())
        return torch.cat([part["scores"] for part in parts]), float(sum(part["seconds"] for part in parts))


def points(levels: int, width: int) -> Float[Tensor, "n width"]:
    """Return the grid's points, those that point the same way once.

    Coordinates are whole numbers, so a point is kept when its coordinates have no common divisor; what it stands for
    (a multiple of it) is in the grid as well as well. An odd grid holds the zero vector.
    """
    rows = _integers(levels, width)
    divisor = np.gcd.reduce(rows, axis=1)
    chosen = rows[(divisor == 1) | ~rows.any(1)]
    return torch.from_numpy(chosen.astype(np.float32))


def _integers(levels: int, width: int) -> np.ndarray:
    """Return all levels^width points with the smallest whole numbers that are equally spaced around 0."""
    values = np.arange(levels) * 2 - (levels - 1)
    if levels % 2:
        values //= 2
    axes = np.meshgrid(*[values.astype(np.int8)] * width, indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], 1)
