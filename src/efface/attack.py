"""Attack: looks for queries that bring back what an edit took away; its fields are its hyper-parameters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput, unknown
from efface.judge import Judge
from efface.models.model import Model
from efface.query import Query
from efface.util.seeds import check_seed

A = TypeVar("A", bound="Attack")


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked: the edited model, who says whether the concept is back, and the model before the edit.

    edited: with its guards.
    judge: the one that the attack may ask; quote results by another one where there is one.
    original: for attacks that draw the concept with it; None where there is none.
    """

    edited: Model
    judge: Judge
    original: Model | None = None

    def seen(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Float[Tensor, " n"]:
        """Return the judge's probability that each picture shows the concept; raises `UnknownName`."""
        kind = "style" if concept.kind == "style" else "object"
        column = self.judge.index(concept.name, kind)
        return self.judge.probabilities(images, kind)[:, column]


@dataclass(frozen=True, eq=False)
class Finding:
    """What an attack found.

    queries: the most successful ones, best first; a prompt that has no words is in their `context`.
    scores: the attack's own estimate for each, 0 to 1. It was maximised, so it is too high: draw anew before quoting.
    edit: set by attacks that change weights ("relearning"), to be added to the edit under attack.
    cost: images drawn, calls of the denoiser (an image and a timestep each), what else the attack counts.
    about: what the attack wants to keep beside it, JSON values.
    """

    queries: tuple[Query, ...] = ()
    scores: tuple[float, ...] = ()
    edit: Edit | None = None
    cost: Mapping[str, float | int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """Attack an edited model: calling it returns a `Finding`.

    PRESETS and QUICK are as in `Method`: named sets of field values, and values that make it quick enough for tests.
    """

    KIND: ClassVar[str] = "attacks"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    QUICK: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        """Refuse a word that a field does not know; an attack that checks more calls this first."""
        registry.check_choices(self)

    def __call__(
        self, target: Target, concept: Concept | str, queries: Sequence[Query] | Query, seed: int = 0
    ) -> Finding:
        """Look for the concept; `queries` say how the images are to be drawn, and what is asked at the start.

        The models are left as they were. Raises `BadInput` without a query, or for a bad seed.
        """
        asked = (queries,) if isinstance(queries, Query) else tuple(queries)
        if not asked:
            raise BadInput("an attack needs at least one query to start from")
        return self.search(target, Concept.of(concept), asked, check_seed(seed))

    @abstractmethod
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return what was found; deterministic in the seed."""

    @classmethod
    def preset(cls: type[A], name: str = "", **override: Any) -> A:
        """Build the attack from a named preset ("" = the defaults) with some fields overridden.

        Raises `UnknownName` for a preset or a field that does not exist.
        """
        if name and name not in cls.PRESETS:
            raise unknown(f"preset of {registry.name_of(cls)}", name, cls.PRESETS)
        return registry.build(cls, **{**(cls.PRESETS[name] if name else {}), **override})


__all__ = ["Attack", "Finding", "Target"]
