"""What a token search found for each query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efface.attack import Finding
from efface.attacks.search.cost import Cost
from efface.attacks.search.vocabulary import Asked
from efface.concept import Concept


@dataclass(eq=False)
class Found:
    """Hold what a search found for one query.

    round: in which, from 0; -1 for the prompt itself, before any search. steps: done for this query.
    """

    asked: Asked
    ids: tuple[int, ...]
    success: bool
    score: float
    round: int
    steps: int = 0

    def describe(self, given: int, prompt: str) -> dict[str, Any]:
        """Return it as JSON values; given: the number of the query it was found for."""
        return {
            "given": given, "prompt": prompt, "ids": list(self.ids), "retokenises": self.asked.retokenises,
            "success": self.success, "before": self.round < 0, "round": self.round, "steps": self.steps,
        }  # fmt: skip


def finding(concept: Concept, found: Sequence[Found], prompts: Sequence[str], cost: Cost) -> Finding:
    """Return a finding, successes first, then by score.

    `about` says for each query, in the finding's order, for which given one it was found, its token ids, whether its
    text is tokenised to them ("retokenises"), and after which round and how many steps.
    """
    order = sorted(range(len(found)), key=lambda i: (-found[i].success, -found[i].score))
    rows = [found[i].describe(i, prompts[i]) for i in order]
    about = {"rows": rows, "retokenises": [row["retokenises"] for row in rows]}
    queries, scores = tuple(found[i].asked.query for i in order), tuple(found[i].score for i in order)
    return Finding(queries, scores, given=tuple(order), cost=vars(cost), about=about)


__all__ = ["Found", "finding"]
