"""Attack: searches for queries with which an edited model generates the erased concept again."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.criterion import Shows, kind_of
from efface.edits.provenance import git, versions
from efface.errors import BadInput, Refused, unknown
from efface.finding import Finding
from efface.judge import Judge
from efface.models.model import Model
from efface.models.token_vectors import encoders
from efface.query import Query
from efface.util.ranges import Ranges, short
from efface.util.seeds import check_seed

A = TypeVar("A", bound="Attack")
Need = Literal["original", "judge", "text encoder"]


@dataclass(frozen=True, eq=False)
class Target:
    """Hold what is attacked: the edited model, and what the attack may use against it.

    edited: the edited model, with its guards.
    judge: the judge that the attack may ask; None if there is none. Report results by another one.
    original: the model before the edit, for attacks that generate the concept with it; None if there is none.
    """

    edited: Model
    judge: Judge | None = None
    original: Model | None = None

    def seen(self, images: Float[Tensor, "n 3 h w"], concept: Concept) -> Float[Tensor, " n"]:
        """Return the judge's probability that each image shows the concept; raises `UnknownName`, `BadInput`."""
        judge, kind = self.asked, kind_of(concept)
        return judge.probabilities(images, kind)[:, judge.index(concept.name, kind)]

    @property
    def asked(self) -> Judge:
        """Return the judge that the attack may ask; raises `BadInput` when there is none."""
        if self.judge is None:
            raise BadInput("this attack asks a judge, and none was given")
        return self.judge

    def describe(self) -> dict[str, Any]:
        """Return what is attacked and who may be asked, as JSON values: what every checkpoint of a search says."""
        original = None if self.original is None else self.original.id
        judge = None if self.judge is None else self.judge.profile.model_dump()
        return {"edited": self.edited.id, "original": original, "judge": judge}

    @property
    def success(self) -> Shows:
        """Return the attack's own criterion of success: the judge it asks sees the concept first."""
        return Shows(self.asked)

    @property
    def source(self) -> Model:
        """Return the original model; raises `BadInput` when there is none."""
        if self.original is None:
            raise BadInput("this attack generates the concept with the original model, and none was given")
        return self.original


@contextmanager
def _frozen(target: Target) -> Iterator[None]:
    """Compute no gradients of weights meanwhile: attacks differentiate queries."""
    models = [target.edited] if target.original is None else [target.edited, target.original]
    trained = [p for model in models for p in model.weights("").values() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Attack(ABC):
    """Base class of attacks: calling one searches an edited model and returns a `Finding`. Fields are hyper-parameters.

    PRESETS, RANGES and QUICK are as in `Method`: named sets of field values, the range of every number, and values
    that make it quick enough for tests. NEEDS: what the target must have. CHANGES_WEIGHTS: whether what it finds is
    an edit.
    """

    KIND: ClassVar[str] = "attacks"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    QUICK: ClassVar[dict[str, Any]] = {}
    NEEDS: ClassVar[tuple[Need, ...]] = ()
    CHANGES_WEIGHTS: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields; a subclass that checks more calls this first. Raises `BadInput` or `UnknownName`."""
        registry.check_fields(self)

    def __call__(
        self, target: Target, concept: Concept | str, queries: Sequence[Query] | Query, seed: int = 0
    ) -> Finding:
        """Search for the concept; `queries` give the first prompts and how images are sampled.

        The models are left as they were. Raises `BadInput` without a query and for a bad seed, `Refused` for a target
        that the attack cannot work on, `UnknownName` for a concept that the judge it asks does not know.
        """
        given: Any = (queries,) if isinstance(queries, Query) else queries
        if not isinstance(given, Sequence) or not all(isinstance(query, Query) for query in given):
            raise BadInput(f"an attack starts from a Query or several, got {short(given)}")
        if not given:
            raise BadInput("an attack needs at least one query to start from")
        wanted = Concept.of(concept)
        if not isinstance(target, Target):
            raise BadInput(f"an attack needs a Target, which holds the edited model, got {short(target)}")
        try:
            self.check(target, wanted, tuple(given))
        except BadInput as error:
            raise Refused(str(error)) from error
        began = time.perf_counter()
        with _frozen(target):
            found = self.search(target, wanted, tuple(given), check_seed(seed))
        meta = self._stamp(target, wanted, seed, time.perf_counter() - began)
        return replace(found, meta=meta | {"queries": [[query.prompt, query.seed] for query in given]})

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that the target has what the attack needs, before any long work; a subclass checks more.

        Raises `BadInput` or `UnknownName`.
        """
        if "original" in self.NEEDS and target.original is None:
            raise BadInput(f"{registry.name_of(type(self))} generates the concept with the original model: give it")
        if "text encoder" in self.NEEDS:
            encoders(target.edited)
        if "judge" in self.NEEDS:
            target.success.check(concept)

    def _stamp(self, target: Target, concept: Concept, seed: int, seconds: float) -> dict[str, Any]:
        """Return the provenance of a finding as JSON values."""
        judge = target.judge
        edit = target.edited.origin[1] if target.edited.origin else ""  # "" for guards alone, and for no edit
        return {
            "attack": registry.name_of(type(self)),
            "fields": registry.to_json(self)["fields"],
            "preset": next((name for name in self.PRESETS if type(self).preset(name) == self), ""),
            "concept": concept.to_json(),
            "seed": seed,
            "edited": {"name": target.edited.name, "id": target.edited.id, "edit": edit},
            "original": None if target.original is None else target.original.id,
            "asked": None if judge is None else judge.profile.model_dump(),
            "versions": versions(),
            "git": git(),
            "seconds": round(seconds, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

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
