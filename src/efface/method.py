"""Method: computes an edit that erases concepts from a model; its fields are its hyper-parameters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard, Hooks
from efface.edits.provenance import stamp
from efface.errors import BadInput, unknown
from efface.models.model import Model
from efface.util.meter import metered
from efface.util.ranges import Ranges, short
from efface.util.seeds import check_seed

M = TypeVar("M", bound="Method")
Fitted = Edit | tuple[Edit, Mapping[str, Edit]]  # an edit, alone or with by-products by name


@dataclass(frozen=True)
class Method(ABC):
    """Base class of erasure methods: calling one returns an `Edit` with its provenance.

    PRESETS: named sets of field values, one for the paper and one for the official code where they differ.
    RANGES: the range of every number among a class's own fields, such as "[0, 1]" (`efface.util.ranges`).
    QUICK: field values that make a costly method fast enough for tests. BY_PRODUCTS: names of what it returns
    besides the edit.
    """

    KIND: ClassVar[str] = "methods"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    QUICK: ClassVar[dict[str, Any]] = {}
    BY_PRODUCTS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check the fields; a subclass that checks more calls this first. Raises `BadInput` or `UnknownName`."""
        registry.check_fields(self)

    def __call__(
        self,
        model: Model,
        erase: Sequence[Concept | str] | Concept | str,
        preserve: Sequence[Concept | str] | Concept | str = (),
        seed: int = 0,
    ) -> Edit:
        """Return an edit that erases concepts; the model itself is not changed.

        Raises what `run` raises.
        """
        return self.run(model, erase, preserve, seed)[0]

    def run(
        self,
        model: Model,
        erase: Sequence[Concept | str] | Concept | str,
        preserve: Sequence[Concept | str] | Concept | str = (),
        seed: int = 0,
    ) -> tuple[Edit, dict[str, Edit]]:
        """Return the edit and the method's by-products by name (KPOP's "key"), which are not part of the edit.

        Raises `BadInput` when nothing is to be erased, when a concept is both erased and preserved, or for a bad seed.
        """
        erased, preserved = Concept.all_of(erase, "erase"), Concept.all_of(preserve, "preserve")
        if not erased:
            raise BadInput("nothing to erase: give at least one concept")
        both = sorted({c.name for c in erased} & {c.name for c in preserved})
        if both:
            raise BadInput(f"cannot both erase and preserve {', '.join(both)}")
        check_seed(seed)
        if not isinstance(model, Model):
            raise BadInput(f"a method needs a Model, as efface.load returns it, got {short(model)}")
        with metered() as meter:
            fitted = self.fit(model, erased, preserved, seed)
        edit, by_products = fitted if isinstance(fitted, tuple) else (fitted, {})
        meta = {**edit.meta, **stamp(self, model.base(edit.names), erased, preserved, seed, meter.read())}
        return replace(edit, meta=meta), dict(by_products)

    @abstractmethod
    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Fitted:
        """Compute the edit, alone or with its by-products; must not change the model's weights."""

    @classmethod
    def preset(cls: type[M], name: str = "", **override: Any) -> M:
        """Build the method from a named preset ("" = the defaults) with some fields overridden.

        Raises `UnknownName` for a preset or a field that does not exist, `BadInput` for a value out of range.
        """
        if name != "" and name not in cls.PRESETS:
            raise unknown(f"preset of {registry.name_of(cls)}", str(name), cls.PRESETS)
        return registry.build(cls, **{**(cls.PRESETS[name] if name else {}), **override})

    @property
    def preset_name(self) -> str:
        """Return the preset these fields equal, or ""."""
        return next((name for name in self.PRESETS if type(self).preset(name) == self), "")


class InferenceMethod(Method):
    """Base class of inference-time methods, whose edit is a guard and changes no weight."""

    @abstractmethod
    def start(self, model: Model, erase: Sequence[Concept]) -> Hooks:
        """Return the hooks of one trajectory; they keep their state between steps in a closure."""

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Return an edit that is one guard; `preserve` and `seed` are not used."""
        return Edit(guards=(Guard(self, tuple(erase)),))


__all__ = ["Guard", "Hooks", "InferenceMethod", "Method"]
