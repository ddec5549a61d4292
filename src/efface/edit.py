"""Edit: the value every method returns. Weight deltas and guards that add, scale, apply, save and load."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface import algebra
from efface.errors import BadEdit
from efface.files import sha256_tensors
from efface.guard import Guard, MapGuard

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from efface.model import Model


@dataclass(frozen=True, eq=False)
class TextMap:
    """Change every named weight W0 (out, dim) by W0 @ left @ right, a map of the text vectors it reads.

    names: the weights, "unet.….weight".
    left, right: the factors, of rank r.
    """

    names: tuple[str, ...]
    left: Float[Tensor, "dim r"]
    right: Float[Tensor, "r dim"]

    def delta(self, weight: Float[Tensor, "out dim"]) -> Float[Tensor, "out dim"]:
        """Return W0 @ left @ right in the precision of the factors (at least fp32)."""
        wide = weight.to(self.left.dtype)
        if 2 * self.left.shape[1] > self.left.shape[0]:  # one product for all weights is less work
            return wide @ self._product.to(weight.device)
        return (wide @ self.left.to(weight.device)) @ self.right.to(weight.device)

    @functools.cached_property
    def _product(self) -> Float[Tensor, "dim dim"]:
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class Edit:
    """Hold what changes a model: W = W0 + Σ dense + Σ W0 L R for every named weight, and guards.

    delta: dense differences by weight name.
    maps: low-rank maps of the text side, see `TextMap`.
    guards: what steps in while an image is drawn.
    meta: provenance, JSON values.
    extra: small tensors a method wants to keep; never applied, not part of `id`.

    >>> both = Edit.load("church.safetensors") + 0.5 * Edit.load("dog.safetensors")
    >>> with both.applied(model) as edited:
    ...     images = edited.generate([Query("a church", seed=0)])
    """

    delta: Mapping[str, Tensor] = field(default_factory=dict)
    maps: tuple[TextMap, ...] = ()
    guards: tuple[Guard | MapGuard, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Edit") -> "Edit":
        """Apply both. Weights commute bit for bit; guards act in the order of the sum.

        Raises `BadEdit` for edits of different base models.
        """
        return algebra.add(self, other)

    def __sub__(self, other: "Edit") -> "Edit":
        """Take `other` back out: weights are subtracted, and its guards must be among this edit's."""
        return algebra.subtract(self, other)

    def __mul__(self, scale: float | int) -> "Edit":
        """Scale the weight differences. Raises `BadEdit` for guards unless the scale is 1 or 0 (which drops them)."""
        return algebra.scale(self, float(scale))

    __rmul__ = __mul__

    def __neg__(self) -> "Edit":
        """Turn the edit round: what it removed, it now adds. Raises `BadEdit` when it has guards."""
        return algebra.scale(self, -1.0)

    def prune(self, keep: str | Iterable[str] = (), drop: str | Iterable[str] = ()) -> "Edit":
        """Leave only the weights that match `keep` (all, when empty) and do not match `drop`.

        A pattern is a block word (down, mid, up, attn1, attn2), a part of the dotted name ("to_k"), or a glob over
        the whole name. Raises `BadInput` when a pattern matches no weight of the edit.
        """
        return algebra.prune(self, keep, drop)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the weights it changes, sorted."""
        return tuple(sorted({*self.delta, *(name for text_map in self.maps for name in text_map.names)}))

    @functools.cached_property
    def id(self) -> str:
        """Return the sha256 of what the edit does: deltas, maps and guards, not the clock and not `extra`."""
        from efface import editfile

        tensors, guards = editfile.pack(replace(self, extra={}))
        text = json.dumps(guards, sort_keys=True)
        return hashlib.sha256((sha256_tensors(tensors) + text).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        method = self.meta.get("method", "edit")
        erased = ", ".join(concept["name"] for concept in self.meta.get("erase", ()))
        return f"Edit({method}: {erased}; {len(self.names)} weights, {len(self.guards)} guards, {self.id[:12]})"

    def dense(self, model: "Model") -> dict[str, Tensor]:
        """Return the dense difference of every changed weight of this model, fp32 or wider. Raises `BadEdit`."""
        self._fit(model)
        return self._differences(self._reference(model, any_base=True))

    def check(self, model: "Model", any_base: bool = False) -> None:
        """Raise `BadEdit` when the edit does not fit: always for other names or shapes, and for other base weights
        unless `any_base`.
        """
        self._fit(model)
        self._reference(model, any_base)

    @contextmanager
    def applied(self, model: "Model", any_base: bool = False) -> Iterator["Model"]:
        """Yield the edited and guarded model. Raises `BadEdit` when it does not fit.

        The yielded model has its own copies of the changed weights and shares all others, so `model` itself stays as
        it is, bit for bit, and both can be used side by side; edits nest.
        """
        yield model.edited(self.new_weights(model, any_base), self.guards, self.id)

    def attach(self, pipe: "DiffusionPipeline", any_base: bool = False) -> None:
        """Apply the edit for good to a diffusers pipeline: `pipe(prompt)` then draws the edited images.

        Raises `BadEdit` when it does not fit or when a guard cannot be attached (nothing is changed then).
        """
        from efface.attach import attach

        attach(self, pipe, any_base)

    def as_guard(self) -> "Edit":
        """Return the same edit as a guard on the text embeddings, which leaves every weight as it is.

        Raises `BadEdit` unless the edit is made of text maps that cover every key and value projection of the text.
        """
        return algebra.as_guard(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with the provenance in its header; raises `WriteError`."""
        from efface import editfile

        editfile.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Edit":
        """Read what `save` wrote; raises `BadFile` or `BadEdit`."""
        from efface import editfile

        return editfile.load(path)

    @torch.no_grad()
    def new_weights(self, model: "Model", any_base: bool = False) -> dict[str, Tensor]:
        """Return W + ΔW of every changed weight W, added in at least fp32 and rounded once to the weight's own type.

        ΔW is relative to the model the edit was made on, so edits of one base add up when applied in turn.
        Raises `BadEdit` as `check` does.
        """
        self._fit(model)
        weights = model.weights("")
        changes = self._differences(self._reference(model, any_base))
        return {name: (weights[name].detach().to(d.dtype) + d).to(weights[name].dtype) for name, d in changes.items()}

    def _fit(self, model: "Model") -> None:
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

    def _reference(self, model: "Model", any_base: bool) -> "Model":
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

    @torch.no_grad()
    def _differences(self, reference: "Model") -> dict[str, Tensor]:
        """Return Σ ΔW by name, the terms added before any of them meets a weight (so that a - a is exactly zero)."""
        weights = reference.weights("")
        found: dict[str, Tensor] = {}
        for name in self.names:
            weight = weights[name].detach()
            terms = [text_map.delta(weight) for text_map in self.maps if name in text_map.names]
            if name in self.delta:
                delta = self.delta[name].to(weight.device)
                terms.append(delta.to(torch.promote_types(delta.dtype, torch.float32)))
            found[name] = functools.reduce(torch.add, terms)
        return found
