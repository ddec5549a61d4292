"""Parts of an edit: weight differences, text maps, guards, provenance."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from efface.edits.guard import Guard, MapGuard


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
class Parts:
    """Hold the parts of an edit; see `Edit`, which adds the operations."""

    delta: Mapping[str, Tensor] = field(default_factory=dict)
    maps: tuple[TextMap, ...] = ()
    guards: tuple[Guard | MapGuard, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the weights it changes, sorted."""
        return tuple(sorted({*self.delta, *(name for text_map in self.maps for name in text_map.names)}))
