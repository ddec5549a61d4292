"""Method: turns a model and a concept into an edit; its fields are its hyper-parameters."""

import time
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
from efface.util.seeds import check_seed

M = TypeVar("M", bound="Method")
Fitted = Edit | tuple[Edit, Mapping[str, Edit]]  # an edit, alone or with by-products by name


@dataclass(frozen=True)
class Method(ABC):
    """Erase concepts: calling it returns an `Edit` that carries its own provenance.

    PRESETS names sets of field values (one per paper and per official code where they differ); QUICK holds
    field values that make a costly method fast enough for the contract tests; BY_PRODUCTS names what it makes
    besides its edit.
    """

    KIND: ClassVar[str] = "methods"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    QUICK: ClassVar[dict[str, Any]] = {}
    BY_PRODUCTS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse a word that a field does not know; a method that checks more calls this first."""
        registry.check_choices(self)

    def __call__(
        self,
        model: Model,
        erase: Sequence[Concept | str] | Concept | str,
        preserve: Sequence[Concept | str] = (),
        seed: int = 0,
    ) -> Edit:
        """Erase concepts from a model, which is left as it was.

        Raises what `run` raises.
        """
        return self.run(model, erase, preserve, seed)[0]

    def run(
        self,
        model: Model,
        erase: Sequence[Concept | str] | Concept | str,
        preserve: Sequence[Concept | str] = (),
        seed: int = 0,
    ) -> tuple[Edit, dict[str, Edit]]:
        """Erase concepts; return the edit and the by-products that must stay out of it, by name (KPOP's "key").

        Raises `BadInput` when nothing is to be erased, when a concept is both erased and preserved, or for a bad seed.
        """
        erased = _concepts([erase] if isinstance(erase, str | Concept) else erase)
        preserved = _concepts([preserve] if isinstance(preserve, str | Concept) else preserve)
        if not erased:
            raise BadInput("nothing to erase: give at least one concept")
        both = sorted({c.name for c in erased} & {c.name for c in preserved})
        if both:
            raise BadInput(f"cannot both erase and preserve {', '.join(both)}")
        check_seed(seed)
        began = time.perf_counter()
        fitted = self.fit(model, erased, preserved, seed)
        edit, by_products = fitted if isinstance(fitted, tuple) else (fitted, {})
        seconds = time.perf_counter() - began
        meta = {**edit.meta, **stamp(self, model.base(edit.names), erased, preserved, seed, seconds)}
        return replace(edit, meta=meta), dict(by_products)

    @abstractmethod
    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Fitted:
        """Compute the edit, alone or with its by-products; the model's weights must be left as they were."""

    @classmethod
    def preset(cls: type[M], name: str = "", **override: Any) -> M:
        """Build the method from a named preset ("" = the defaults) with some fields overridden.

        Raises `UnknownName` for a preset or a field that does not exist.
        """
        if name and name not in cls.PRESETS:
            raise unknown(f"preset of {registry.name_of(cls)}", name, cls.PRESETS)
        return registry.build(cls, **{**(cls.PRESETS[name] if name else {}), **override})

    @property
    def preset_name(self) -> str:
        """Return the preset these fields equal, or ""."""
        return next((name for name in self.PRESETS if type(self).preset(name) == self), "")


class InferenceMethod(Method):
    """Hold concepts back while images are drawn: its edit is a guard, and no weight changes."""

    @abstractmethod
    def start(self, model: Model, erase: Sequence[Concept]) -> Hooks:
        """Return the hooks of one trajectory; what they remember lives in their closure."""

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Return an edit that is one guard; `preserve` and `seed` do not matter to it."""
        return Edit(guards=(Guard(self, tuple(erase)),))


def _concepts(values: Sequence[Concept | str]) -> tuple[Concept, ...]:
    return tuple(dict.fromkeys(Concept.of(value) for value in values))


__all__ = ["Guard", "Hooks", "InferenceMethod", "Method"]
