"""Concept Inversion: learn word vectors with which the edited model generates the concept again (Pham et al., 2023).

Pham, Marshall, Cohen, Mittal and Hegde, Circumventing Concept Erasure Methods for Text-to-Image Generative Models,
https://arxiv.org/abs/2308.01508. It is textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618) through
the edited model, on pictures by the original one. Code: https://github.com/NYU-DICE-Lab/circumventing-concept-erasure.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from efface.attack import Finding, Target
from efface.attacks.search.inverting import Inverting, Words, invert
from efface.attacks.search.phrases import queries_with
from efface.concept import Concept
from efface.query import Query
from efface.util.ranges import ROWS, Ranges


@dataclass(frozen=True)
class Inversion(Inverting):
    """Learn vectors in place of the concept's name, several attempts in one batch.

    Args:
        attempts: independent inversions; the first starts at `start`, the others beside it
        start: text whose token vectors are the start; "" = the concept's name, or "art" for a style
    """

    attempts: int = 1
    start: str = ""

    RANGES: ClassVar[Ranges] = {"attempts": ROWS, "attempts * batch": "[1, 1e5]"}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"steps": 5000, "lr": 0.08, "batch": 16},  # 4 × 4 accumulated; --scale_lr makes 5e-3 into 0.08
        "repo-sld": {"steps": 1000, "lr": 0.02, "batch": 4},  # 1 × 4 accumulated
        "mini": {"steps": 120, "lr": 2e-2, "batch": 4, "images": 16, "window": 4, "momentum": "held"},
    }
    QUICK: ClassVar[dict[str, Any]] = {"attempts": 2, "steps": 2, "batch": 2, "images": 2, "window": 3}

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the given queries with each attempt's vectors in the name's place, the lowest loss first.

        Scores are the attempts' mean losses of the last tenth, negated; `tensors` holds the "vectors".
        """
        start = self.start or ("art" if concept.kind == "style" else concept.name)
        words = Words.beside(target.edited, start, self.vectors, self.attempts, seed)
        found = invert(self, target, concept, queries, words, seed)
        order = found.losses.argsort(stable=True)
        vectors: Tensor = found.vectors[order]
        asked = queries_with(target.edited, concept, vectors, queries, self.phrases(concept, queries))
        scores = tuple(-float(loss) for loss in found.losses[order] for _ in queries)
        about = {"loss": found.history, "start": start}
        given = tuple(range(len(queries))) * len(vectors)
        tensors = {"vectors": vectors, "order": order}
        return Finding(asked, scores, cost=found.cost, about=about, tensors=tensors, given=given)


__all__ = ["Inversion"]
