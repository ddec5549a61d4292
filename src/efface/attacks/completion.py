"""Diffusion completion: the first steps by the original model, the rest by the edited one.

Lu et al. 2025, When Are Concepts Erased From Diffusion Models?, https://arxiv.org/abs/2505.17013: an erasure that only
avoids the concept completes what the original model began. Code: https://github.com/kevinlu4588/WhenAreConceptsErased.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost, calls_of
from efface.attacks.search.starts import alike, check_late, plain, ranked, seen
from efface.concept import Concept
from efface.errors import BadInput
from efface.query import Query
from efface.util.progress import progress
from efface.util.ranges import ROWS, Ranges


@dataclass(frozen=True)
class Completion(Attack):
    """Begin each image with the original model, and let the edited one complete it.

    Args:
        first: steps by the original model, one try for each number; 0 is the edited model alone
        shares: the same as shares of the query's steps, rounded up, at most all but the last step
        solver: of the queries; "" = their own, which must be able to begin in the middle
        batch: images at once
    """

    first: tuple[int, ...] = (6, 11)  # the code stops after the steps numbered 5 and 10 of 50, counted from 0
    shares: tuple[float, ...] = ()
    solver: str = "ddim"  # the code's
    batch: int = 32

    NEEDS: ClassVar[tuple[Need, ...]] = ("original", "judge")
    RANGES: ClassVar[Ranges] = {"first": "[0, 999]", "shares": "[0, 1]", "batch": ROWS}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "repo": {},
        "first": {"first": (0, 1, 2)},
        "mini": {"first": (), "shares": (0.12, 0.22)},  # of 50 steps: 6 and 11
    }
    QUICK: ClassVar[dict[str, Any]] = {"first": (0, 1)}

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that each query has a step left for the edited model."""
        super().check(target, concept, queries)
        if not self.first and not self.shares:
            raise BadInput("completion needs first or shares: the steps by the original model")
        asked = plain(queries, self.solver)
        check_late(target.edited, asked)
        for query in asked:
            if (most := max(self.first, default=0)) >= query.steps:
                raise BadInput(f"first is {most}, but an image has {query.steps} steps, of which the last is not begun")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query for each prompt and number of steps, ranked by the judge; `about` has the steps of each."""
        tries: list[Query] = []
        given: list[int] = []
        for numbers in alike(asked := plain(queries, self.solver)):
            group = [asked[i] for i in numbers]
            for begun in progress(self._steps(group[0].steps), "images to complete"):
                for i in range(0, len(group), self.batch):
                    tries += self._begin(target, group[i : i + self.batch], begun)
                given += numbers
        scores = seen(target, concept, tries, self.batch)
        best, values, order = ranked(tries, scores)
        whole = plain(tries, self.solver)
        cost = Cost(calls=calls_of(target.source, whole) - calls_of(target.source, tries))  # the steps it began
        cost.generated(target.edited, tries)
        about = {"first": [query.start for query in best]}
        return Finding(best, values, given=tuple(given[i] for i in order), cost=vars(cost), about=about)

    def _steps(self, steps: int) -> list[int]:
        """Return the numbers of steps by the original model, each once."""
        shares = [min(steps - 1, -int(-share * steps // 1)) for share in self.shares]
        return list(dict.fromkeys([*self.first, *shares]))

    def _begin(self, target: Target, queries: list[Query], steps: int) -> list[Query]:
        if not steps:
            return queries
        x = target.source.sample(queries, stop=steps)
        return [replace(q, latents=x[i : i + 1].clone(), start=steps) for i, q in enumerate(queries)]


__all__ = ["Completion"]
