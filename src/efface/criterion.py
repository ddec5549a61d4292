"""Criterion: when an attack has succeeded. Criteria compose: `a & b`, `a | b`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from efface.concept import Concept
from efface.errors import BadInput
from efface.judge import Judge, Judged
from efface.util.ranges import short


def kind_of(concept: Concept) -> Judged:
    """Return the kind of thing a judge looks for: a style, or else an object."""
    return "style" if concept.kind == "style" else "object"


class Criterion(ABC):
    """Base class: says for each image whether it shows the concept."""

    @abstractmethod
    def __call__(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Bool[Tensor, " n"]:
        """Return whether each image, in [0, 1], shows the concept. Raises `UnknownName` for one the judge lacks."""

    @abstractmethod
    def check(self, concept: Concept) -> None:
        """Raise `UnknownName` or `BadInput` unless the criterion can be asked about the concept."""

    @property
    @abstractmethod
    def judges(self) -> tuple[Judge, ...]:
        """Return the judges that decide."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what decides, with the judge's profile, as JSON values."""

    def __and__(self, other: "Criterion") -> "Criterion":
        return Both(self, other)

    def __or__(self, other: "Criterion") -> "Criterion":
        return Either(self, other)


@dataclass(frozen=True, eq=False)
class Shows(Criterion):
    """The concept is among the judge's `top` names of an image, with at least a probability.

    judge: who decides. top: 1 for the most probable name only. least: probability, 0 to 1.
    """

    judge: Judge
    top: int = 1
    least: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise BadInput(f"top is a whole number from 1, got {short(self.top)}")
        if not 0 <= self.least <= 1:
            raise BadInput(f"least is a probability from 0 to 1, got {short(self.least)}")

    def __call__(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Bool[Tensor, " n"]:
        """Return whether each image shows the concept."""
        kind = kind_of(concept)
        column = self.judge.index(concept.name, kind)
        seen = self.judge.probabilities(images, kind)
        own = seen[:, column]
        return ((seen > own[:, None]).sum(1) < self.top) & (own >= self.least)

    def check(self, concept: Concept) -> None:
        """Raise `UnknownName` unless the judge knows the concept."""
        self.judge.index(concept.name, kind_of(concept))

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Return its judge."""
        return (self.judge,)

    def describe(self) -> dict[str, Any]:
        """Return the rule and the judge's profile."""
        return {"shows": {"top": self.top, "least": self.least, "judge": self.judge.profile.model_dump()}}


@dataclass(frozen=True, eq=False)
class Like(Criterion):
    """An image's CLIP similarity with the concept's text is at least a threshold.

    judge: one with a CLIP. least: cosine, -1 to 1. text: by default the concept's first prompt.
    """

    judge: Judge
    least: float
    text: str = ""

    def __post_init__(self) -> None:
        if not self.judge.reads_text:
            raise BadInput(f"the judge {self.judge.profile.evaluator} has no CLIP to compare an image with a text")
        if not -1 <= self.least <= 1:
            raise BadInput(f"least is a cosine from -1 to 1, got {short(self.least)}")

    def __call__(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Bool[Tensor, " n"]:
        """Return whether each image is like the text."""
        return self.judge.clip_score(images, [self.text or concept.texts[0]] * len(images)) >= self.least

    def check(self, concept: Concept) -> None:
        """Do nothing: any text can be compared."""

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Return its judge."""
        return (self.judge,)

    def describe(self) -> dict[str, Any]:
        """Return the threshold and the judge's profile."""
        return {"like": {"least": self.least, "text": self.text, "judge": self.judge.profile.model_dump()}}


@dataclass(frozen=True, eq=False)
class _Pair(Criterion):
    first: Criterion
    second: Criterion

    def check(self, concept: Concept) -> None:
        self.first.check(concept)
        self.second.check(concept)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Return the judges of both."""
        return self.first.judges + self.second.judges


@dataclass(frozen=True, eq=False)
class Both(_Pair):
    """Both criteria say so."""

    def __call__(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Bool[Tensor, " n"]:
        return self.first(images, concept) & self.second(images, concept)

    def describe(self) -> dict[str, Any]:
        return {"both": [self.first.describe(), self.second.describe()]}


@dataclass(frozen=True, eq=False)
class Either(_Pair):
    """At least one criterion says so."""

    def __call__(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Bool[Tensor, " n"]:
        return self.first(images, concept) | self.second(images, concept)

    def describe(self) -> dict[str, Any]:
        return {"either": [self.first.describe(), self.second.describe()]}


__all__ = ["Both", "Criterion", "Either", "Like", "Shows", "kind_of"]
