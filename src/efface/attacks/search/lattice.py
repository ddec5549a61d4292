"""The points of a grid of coefficients, each direction once."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def points(values: int, width: int) -> Float[Tensor, "n width"]:
    """Return the grid's points, only one of those with the same direction.

    Coordinates are whole numbers, so a point is kept when its coordinates have no common divisor, in place of its
    multiples. A grid with an odd number of values has the zero vector.
    """
    rows = _integers(values, width)
    divisor = np.gcd.reduce(rows, axis=1)
    chosen = rows[(divisor == 1) | ~rows.any(1)]
    return torch.from_numpy(chosen.astype(np.float32))


def _integers(values: int, width: int) -> np.ndarray:
    """Return all values^width points with the smallest whole numbers that are equally spaced around 0."""
    numbers = np.arange(values) * 2 - (values - 1)
    if values % 2:
        numbers //= 2
    axes = np.meshgrid(*[numbers.astype(np.int8)] * width, indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], 1)
