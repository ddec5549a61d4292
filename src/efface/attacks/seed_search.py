"""Seed search: the prompts as they are, over many seeds, the most successful first.

The weakest attack, and the baseline of the others: an erasure that a new seed undoes has not erased. Chin et al. 2024,
Prompting4Debugging, https://arxiv.org/abs/2309.06135, compare with it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface import registry
from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.starts import ranked
from efface.concept import Concept
from efface.query import Query
from efface.training.checkpoints import current
from efface.training.loop import generator
from efface.util.progress import progress
from efface.util.ranges import COUNT, ROWS, Ranges


@dataclass(frozen=True)
class SeedSearch(Attack):
    """Generate every prompt with many seeds.

    Args:
        tries: seeds for each prompt; the first is the query's own
        stop: stop after the first batch with a success
        batch: images at once
    """

    tries: int = 100
    stop: bool = False
    batch: int = 32

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    RANGES: ClassVar[Ranges] = {"tries": COUNT, "batch": ROWS}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"mini": {"tries": 64}}
    QUICK: ClassVar[dict[str, Any]] = {"tries": 3}

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return every query that was tried, by the judge's probability; resumes batch by batch.

        `about` holds the number tried, and the share that succeeded by the attack's own judge.
        """
        rng = generator(seed, "seeds")
        drawn = torch.randint(2**62, (self.tries - 1, len(queries)), generator=rng).tolist()
        tries = [*queries, *(replace(q, seed=s) for row in drawn for q, s in zip(queries, row, strict=True))]
        about = {
            "attack": registry.to_json(self), "concept": concept.to_json(), "seed": seed, **target.describe(),
            "queries": [query.key for query in queries],
        }  # fmt: skip
        stored = current()
        scores: list[Tensor] = []
        won: list[Tensor] = []
        for first in progress(range(0, len(tries), self.batch), f"seeds of {concept.name}"):
            part = tries[first : first + self.batch]

            def judge(part: list[Query] = part) -> dict[str, Tensor]:
                images = target.edited.generate(part, self.batch)
                return {"seen": target.seen(images, concept).cpu(), "won": target.success(images, concept).cpu()}

            made = stored.once(f"seeds-{first}", about, judge) if stored else judge()
            scores.append(made["seen"])
            won.append(made["won"].bool())
            if self.stop and bool(won[-1].any()):
                break
        success = torch.cat(won)
        best, values, order = ranked(tries[: len(success)], torch.cat(scores))
        cost = Cost()
        cost.generated(target.edited, best)
        told = {"tried": len(success), "succeeded": float(success.float().mean())}
        given = tuple(i % len(queries) for i in order)
        return Finding(best, values, given=given, cost=vars(cost), about=told)


__all__ = ["SeedSearch"]
