"""Context: an encoded prompt, on which the denoiser is conditioned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput


@dataclass(frozen=True, eq=False)
class Context:
    """Hold encoded prompts as the denoiser reads them, one row each.

    tokens: the vectors that attention reads, (b, len, dim).
    pooled: one vector a prompt, for families that read one beside the tokens (SDXL, SD3, FLUX), (b, width), else None.
    guidance: the guidance scale that the denoiser reads as a number, for models into which guidance was distilled
        (FLUX.1 dev), (b,), else None.

    >>> c = model.encode(["a church", "a house"])
    >>> len(c), c[0:1].tokens.shape
    (2, torch.Size([1, 77, 768]))
    """

    tokens: Float[Tensor, "b len dim"]
    pooled: Float[Tensor, "b width"] | None = None
    guidance: Float[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "Context":
        """Return some rows: a slice, a list of numbers, or a tensor of numbers or booleans."""
        return self._each(lambda value: value[rows])

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.tokens.device

    def map(self, change: Callable[[Tensor], Tensor]) -> "Context":
        """Return the context with a function applied to tokens and pooled vectors alike."""
        return replace(self, tokens=change(self.tokens), pooled=None if self.pooled is None else change(self.pooled))

    def with_tokens(self, tokens: Float[Tensor, "b len2 dim2"]) -> "Context":
        """Return the context with other token vectors and the same pooled ones."""
        return replace(self, tokens=tokens)

    def to(self, where: "torch.dtype | torch.device | Context") -> "Context":
        """Return the context in a dtype or on a device, or in the dtype and on the device of another context."""
        like = where.tokens if isinstance(where, Context) else where
        return self._each(lambda value: value.to(like))

    def float(self) -> "Context":
        """Return the context in fp32."""
        return self._each(Tensor.float)

    def expand(self, count: int) -> "Context":
        """Return `count` rows: one row is repeated without a copy, `count` rows are returned as they are.

        Raises `BadInput` for any other number of rows.
        """
        if len(self) not in (1, count):
            raise BadInput(f"{len(self)} contexts do not fit {count} images: give one, or one for each")
        return self._each(lambda value: value.expand(count, *value.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Context":
        """Return the context with a function applied to everything in it."""
        others = (None if value is None else change(value) for value in (self.pooled, self.guidance))
        return Context(change(self.tokens), *others)


def cat(contexts: Sequence[Context]) -> Context:
    """Concatenate the rows of one or more contexts of one family; raises `BadInput` for those of different ones."""

    def joined(what: str, values: Sequence[Tensor | None]) -> Tensor | None:
        given = [value for value in values if value is not None]
        if given and len(given) < len(values):
            raise BadInput(f"contexts with and without {what} cannot be joined: they are of different families")
        return torch.cat(given) if given else None

    pooled = joined("pooled vectors", [c.pooled for c in contexts])
    guidance = joined("a guidance scale", [c.guidance for c in contexts])
    return Context(torch.cat([c.tokens for c in contexts]), pooled, guidance)
