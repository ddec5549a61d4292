"""Attack: searches for queries with which an edited model generates the erased concept again."""

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
from efface.util.ranges import Ranges, short
from efface.util.seeds import check_seed

A = TypeVar("A", bound="Attack")


@dataclass(frozen=True, eq=False)
class Target:
    """Hold what is attacked: the edited model, the judge that looks for the concept, and the original model.

    edited: the edited model, with its guards.
    judge: the judge that the attack may query. Report results by another judge where there is one.
    original: the model before the edit, for attacks that generate the concept with it; None if there is none.
    """

    edited: Model
    judge: Judge
    original: Model | None = None

    def seen(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Float[Tensor, " n"]:
        """Return the judge's probability that each image shows the concept; raises `UnknownName`."""
        kind = "style" if concept.kind == "style" else "object"
        column = self.judge.index(concept.name, kind)
        return self.judge.probabilities(images, kind)[:, column]


@dataclass(frozen=True, eq=False)
class Finding:
    """Hold the result of an attack.

    queries: the most successful ones, best first; a prompt that is not text is in their `context`.
    scores: the attack's own estimate for each, 0 to 1. It was maximised, so it is biased: report new images.
    edit: set by attacks that change weights ("relearning"), to be added to the edit under attack.
    cost: images generated, calls of the denoiser (one image at one timestep each), and what else the attack counts.
    about: further details of the search, JSON values.
    """

    queries: tuple[Query, ...] = ()
    scores: tuple[float, ...] = ()
    edit: Edit | None = None
    cost: Mapping[str, float | int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """Base class of attacks: calling one searches an edited model and returns a `Finding`. Fields are hyper-parameters.

    PRESETS, RANGES and QUICK are as in `Method`: named sets of field values, the range of every number, and values
    that make it quick enough for tests.
    """

    KIND: ClassVar[str] = "attacks"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    QUICK: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        """Check the fields; a subclass that checks more calls this first. Raises `BadInput` or `UnknownName`."""
        registry.check_fields(self)

    def __call__(
        self, target: Target, concept: Concept | str, queries: Sequence[Query] | Query, seed: int = 0
    ) -> Finding:
        """Search for the concept; `queries` give the first prompts and how images are sampled.

        The models are left as they were. Raises `BadInput` without a query, or for a bad seed.
        """
        given: Any = (queries,) if isinstance(queries, Query) else queries
        if not isinstance(given, Sequence) or not all(isinstance(query, Query) for query in given):
            raise BadInput(f"an attack starts from a Query or several, got {short(given)}")
        if not given:
            raise BadInput("an attack needs at least one query to start from")
        return self.search(target, Concept.of(concept), tuple(given), check_seed(seed))

    @abstractmethod
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return what was found; deterministic in the seed."""

    @classmethod
    def preset(cls: type[A], name: str = "", **override: Any) -> A:
        """Build the attack from a named preset ("" = the defaults) with some fields overridden.

        Raises `UnknownName` for a preset or a field that does not exist, `BadInput` for a value out of range.
        """
        if name != "" and name not in cls.PRESETS:
            raise unknown(f"preset of {registry.name_of(cls)}", str(name), cls.PRESETS)
        return registry.build(cls, **{**(cls.PRESETS[name] if name else {}), **override})


__all__ = ["Attack", "Finding", "Target"]
