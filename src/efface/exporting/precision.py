"""Precisions of exported tensors, and the error that each brings."""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from efface.errors import BadEdit


class Kind(NamedTuple):
    """Hold torch's name of a precision, and the largest relative error of a product of two rounded factors."""

    torch: str
    error: float


class Precision(Enum):
    """The precisions that files are written in."""

    fp32 = Kind("float32", 1e-5)
    fp16 = Kind("float16", 2e-3)
    bf16 = Kind("bfloat16", 1.6e-2)

    @property
    def torch(self) -> str:
        """Return torch's name."""
        return self.value.torch

    @property
    def error(self) -> float:
        """Return the largest relative error of what is read from a file in this precision."""
        return self.value.error


def fitting(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a precision; raises `BadEdit` when its values overflow."""
    small = value.to(dtype)
    if not bool(small.float().isfinite().all()):
        raise BadEdit(f"{key} has values up to {float(value.abs().max()):.3g}, which overflow in {dtype}: use fp32")
    return small.contiguous()
