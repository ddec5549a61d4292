"""Edit: the value every method returns. Weight deltas and guards that add, scale, apply, save and load."""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from efface.edits import arithmetic, file
from efface.edits.guard import Guard, MapGuard
from efface.edits.parts import Parts
from efface.errors import BadEdit, BadInput
from efface.util.ranges import short


@runtime_checkable
class NamedWeights(Protocol):
    """Protocol of what an edit needs of a model: weights by name, their hashes, and a copy with some replaced.

    `Model` fulfils it.
    """

    @property
    def name(self) -> str: ...
    @property
    def origin(self) -> "tuple[Any, str] | None": ...  # of an edited model: the model before, and the edit's id
    def weights(self, prefix: str = "unet.") -> dict[str, nn.Parameter]: ...
    def hashes(self, names: Iterable[str]) -> dict[str, str]: ...
    def edited(self, weights: Mapping[str, Tensor], guards: tuple[Guard | MapGuard, ...] = (), id: str = "") -> Any: ...


M = TypeVar("M", bound=NamedWeights)


def _edit(value: "Edit") -> "Edit":
    """Return an edit as it is; raises `BadInput` for anything else."""
    if not isinstance(value, Edit):
        raise BadInput(f"only edits are added to and subtracted from an edit, got {short(value)}")
    return value


@dataclass(frozen=True, eq=False)
class Edit(Parts):
    """Hold what changes a model: W = W0 + Σ dense + Σ W0 L R for every named weight, and guards.

    delta: dense differences by weight name.
    maps: low-rank maps of the text side, see `TextMap`.
    guards: what steps in while an image is generated.
    meta: provenance, JSON values.
    extra: further tensors of the method; never applied, not part of `id`.

    >>> both = Edit.load("church.safetensors") + 0.5 * Edit.load("dog.safetensors")
    >>> with both.applied(model) as edited:
    ...     images = edited.generate([Query("a church", seed=0)])
    """

    def __add__(self, other: "Edit") -> "Edit":
        """Apply both. Weights commute bit for bit; guards act in the order of the sum.

        Raises `BadEdit` for edits of different base models.
        """
        return arithmetic.add(self, _edit(other))

    def __sub__(self, other: "Edit") -> "Edit":
        """Remove `other`: weights are subtracted, and its guards must be among this edit's."""
        return arithmetic.subtract(self, _edit(other))

    def __mul__(self, scale: float | int) -> "Edit":
        """Scale the weight differences. Raises `BadEdit` for guards unless the scale is 1 or 0 (which drops them)."""
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise BadInput(f"an edit is scaled by a number, got {short(scale)}")
        return arithmetic.scale(self, float(scale))

    __rmul__ = __mul__

    def __neg__(self) -> "Edit":
        """Reverse the sign of the edit: what it removed, it now adds. Raises `BadEdit` when it has guards."""
        return arithmetic.scale(self, -1.0)

    def prune(self, only: str | Iterable[str] = (), without: str | Iterable[str] = ()) -> "Edit":
        """Leave only the weights that match `only` (all, when empty) and do not match `without`.

        A pattern is a block word (down, mid, up, attn1, attn2), a part of the dotted name ("to_k"), or a glob over
        the whole name. Raises `BadInput` when a pattern matches no weight of the edit.
        """
        return arithmetic.prune(self, only, without)

    @functools.cached_property
    def id(self) -> str:
        """Return the sha256 of what the edit does: deltas, maps and guards, without provenance and `extra`."""
        return file.content_id(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        method = self.meta.get("method", "edit")
        erased = ", ".join(concept["name"] for concept in self.meta.get("erase", ()))
        return f"Edit({method}: {erased}; {len(self.names)} weights, {len(self.guards)} guards, {self.id[:12]})"

    def dense(self, model: NamedWeights) -> dict[str, Tensor]:
        """Return the dense difference of every changed weight of this model, fp32 or wider. Raises `BadEdit`."""
        self._fit(model)
        return dict(self._differences(self._reference(model, any_base=True)))

    def check(self, model: NamedWeights, any_base: bool = False) -> None:
        """Raise `BadEdit` when the edit does not fit: always for other names or shapes, and for other base weights
        unless `any_base`.
        """
        self._fit(model)
        self._reference(model, any_base)

    @contextmanager
    def applied(self, model: M, any_base: bool = False) -> Iterator[M]:
        """Yield the edited and guarded model. Raises `BadEdit` when it does not fit.

        The yielded model has its own copies of the changed weights and shares all others, so `model` itself stays as
        it is, bit for bit, and both can be used side by side; edits nest.
        """
        if not hasattr(model, "edited"):
            raise BadInput(f"an edit is applied to a Model, got {short(model)}")
        yield model.edited(self.new_weights(model, any_base), self.guards, self.id)

    def as_guard(self) -> "Edit":
        """Return an equivalent edit that is a guard on the text embeddings and changes no weight.

        Raises `BadEdit` unless the edit is made of text maps that cover every key and value projection of the text.
        """
        return arithmetic.as_guard(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with the provenance in its header; raises `WriteError`."""
        file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Edit":
        """Read what `save` wrote; raises `BadFile` or `BadEdit`."""
        return cls(**file.load(path))

    @torch.no_grad()
    def new_weights(self, model: NamedWeights, any_base: bool = False) -> dict[str, Tensor]:
        """Return W + ΔW of every changed weight W, added in at least fp32 and rounded once to the weight's own type.

        ΔW is relative to the model the edit was made on, so edits of one base add up when applied in turn.
        Raises `BadEdit` as `check` does.
        """
        self._fit(model)
        weights = model.weights("")
        changes = self._differences(self._reference(model, any_base))  # one at a time: all would be a second model
        return {name: (weights[name].detach().to(d.dtype) + d).to(weights[name].dtype) for name, d in changes}

    def _fit(self, model: NamedWeights) -> None:
        """Raise `BadEdit` unless the model has weights of these names and shapes."""
        weights = model.weights("")
        another = f"this edit is for another architecture than {model.name or 'this model'}"
        for name in self.names:
            if name not in weights:
                raise BadEdit(f"{another}, which has no weight {name}")
        for name, delta in self.delta.items():
            if delta.shape != weights[name].shape:
                raise BadEdit(f"{another}: {name} is {list(delta.shape)}, not {list(weights[name].shape)}")
        for text_map in self.maps:
            for name in text_map.names:
                shape = list(weights[name].shape)
                if len(shape) != 2 or shape[1] != text_map.left.shape[0]:
                    raise BadEdit(f"{another}: {name} is {shape}, the edit maps {text_map.left.shape[0]} channels")

    def _reference(self, model: NamedWeights, any_base: bool) -> NamedWeights:
        """Return the model that ΔW is relative to: this one, or the one under the edits applied to it so far."""
        base = self.meta.get("base", {})
        hashes: Mapping[str, str] = base.get("hashes", {})
        names = [name for name in self.names if name in hashes]
        found: dict[str, str] = {}
        while names:
            found = model.hashes(names)
            if all(found[name] == hashes[name] for name in names):
                return model
            if model.origin is None:
                break
            model = model.origin[0]
        wrong = [name for name in names if found[name] != hashes[name]]
        if wrong and not any_base:
            raise BadEdit(
                f"this edit was made on {base.get('name') or 'another model'} and {len(wrong)} of its {len(names)} "
                f"weights differ in {model.name or 'this model'} (first: {wrong[0]}); any_base applies it all the same"
            )
        while model.origin is not None:
            model = model.origin[0]
        return model

    def _differences(self, reference: NamedWeights) -> Iterator[tuple[str, Tensor]]:
        """Yield names and Σ ΔW, the terms added before any of them meets a weight (so that a - a is exactly zero)."""
        weights = reference.weights("")
        for name in self.names:
            weight = weights[name].detach()
            terms = [text_map.delta(weight) for text_map in self.maps if name in text_map.names]
            if name in self.delta:
                delta = self.delta[name].to(weight.device)
                terms.append(delta.to(torch.promote_types(delta.dtype, torch.float32)))
            with torch.no_grad():
                total = functools.reduce(torch.add, terms)
            yield name, total
