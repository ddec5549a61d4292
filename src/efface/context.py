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
    pooled: one vector a prompt, for families that read one beside the tokens (SDXL), (b, width), else None.

    >>> c = model.encode(["a church", "a house"])
    >>> len(c), c[0:1].tokens.shape
    (2, torch.Size([1, 77, 768]))
    """

    tokens: Float[Tensor, "b len dim"]
    pooled: Float[Tensor, "b width"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "Context":
        """Return some rows: a slice, a list of numbers, or a tensor of numbers or booleans."""
        return self.map(lambda value: value[rows])

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.tokens.device

    def map(self, change: Callable[[Tensor], Tensor]) -> "Context":
        """Return the context with a function applied to tokens and pooled vectors alike."""
        return Context(change(self.tokens), None if self.pooled is None else change(self.pooled))

    def with_tokens(self, tokens: Float[Tensor, "b len2 dim2"]) -> "Context":
        """Return the context with other token vectors and the same pooled ones."""
        return replace(self, tokens=tokens)

    def to(self, where: "torch.dtype | torch.device | Context") -> "Context":
        """Return the context in a dtype or on a device, or in the dtype and on the device of another context."""
        like = where.tokens if isinstance(where, Context) else where
        return self.map(lambda value: value.to(like))

    def float(self) -> "Context":
        """Return the context in fp32."""
        return self.map(Tensor.float)

    def expand(self, count: int) -> "Context":
        """Return `count` rows: one row is repeated without a copy, `count` rows are returned as they are.

        Raises `BadInput` for any other number of rows.
        """
        if len(self) not in (1, count):
            raise BadInput(f"{len(self)} contexts do not fit {count} images: give one, or one for each")
        return self.map(lambda value: value.expand(count, *value.shape[1:]))


def cat(contexts: Sequence[Context]) -> Context:
    """Concatenate the rows of one or more contexts of one family."""
    pooled = [c.pooled for c in contexts if c.pooled is not None]
    if pooled and len(pooled) < len(contexts):
        raise BadInput("contexts with and without pooled vectors cannot be joined: they are of different families")
    return Context(torch.cat([c.tokens for c in contexts]), torch.cat(pooled) if pooled else None)
