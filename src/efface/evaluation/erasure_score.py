"""Erasure Score: how much a model's images still look like an erased concept, at worst (Pham et al., 2024).

Robust Concept Erasure Using Task Vectors, https://arxiv.org/abs/2404.03631, section 5.1: the largest CLIP similarity
with the concept's name, over an image of the name and one of every embedding that Diverse Inversion learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from efface.concept import Concept
from efface.errors import BadInput
from efface.judge import Judge, Profile
from efface.models.model import Model
from efface.query import Query


@dataclass(frozen=True)
class ErasureScore:
    """Hold the CLIP similarities (cosines, -1 to 1) of a model's images with the concept's name.

    named: of the images of the name. learned: of those of the embeddings, in their order. text: what the images were
    compared with. judge: the profile of the CLIP; scores of different ones are not comparable.
    """

    named: tuple[float, ...]
    learned: tuple[float, ...] = ()
    text: str = ""
    judge: Profile = field(default_factory=lambda: Profile(evaluator=""))

    def __post_init__(self) -> None:
        if not self.named:
            raise BadInput("an Erasure Score needs an image of the concept's name")

    @property
    def value(self) -> float:
        """Return the Erasure Score: the largest similarity. It grows with the number of images."""
        return max(self.named + self.learned)

    @property
    def mean(self) -> float:
        """Return the mean similarity."""
        return sum(self.named + self.learned) / self.n

    @property
    def n(self) -> int:
        """Return the number of images."""
        return len(self.named) + len(self.learned)

    def first(self, count: int) -> "ErasureScore":
        """Return the score over the name and the first embeddings only (the study of figure 12).

        Raises `BadInput` for more embeddings than there are.
        """
        if not 0 <= count <= len(self.learned):
            raise BadInput(f"the first {count} embeddings of {len(self.learned)} cannot be taken")
        return ErasureScore(self.named, self.learned[:count], self.text, self.judge)


def erasure_score(
    model: Model,
    judge: Judge,
    concept: Concept,
    named: Sequence[Query],
    learned: Sequence[Query] = (),
    text: str = "",
    batch: int = 32,
) -> ErasureScore:
    """Generate one image a query and compare each with the concept's name.

    named: queries that ask for the concept by name. learned: queries with embeddings, such as those of a finding of
    Diverse Inversion. text: what images are compared with, by default the name. Raises `BadInput` for a judge without
    a CLIP and without a named query.
    """
    if not judge.reads_text:
        raise BadInput(f"the judge {judge.profile.evaluator} has no CLIP, which the Erasure Score is made of")
    if not named:
        raise BadInput("an Erasure Score needs a query that names the concept")
    queries, text = [*named, *learned], text or concept.name
    images = model.generate(queries, batch).to(judge.device)
    found = tuple(float(one) for one in judge.clip_score(images, [text] * len(queries)))
    return ErasureScore(found[: len(named)], found[len(named) :], text, judge.profile)


__all__ = ["ErasureScore", "erasure_score"]
