"""Projection onto the probability simplex, by bisection."""

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 60  # of an interval of length 1: the sum is 1 up to float64's rounding


@torch.no_grad()
def project(rows: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """Return the nearest probabilities to every row: {p : 0 ≤ p, Σ p = 1}.

    They are clip(a - mu, 0, 1) for the one mu that makes their sum 1, which lies in [max a - 1, max a].
    """
    a = rows.double()
    high = a.max(1, keepdim=True).values
    low = high - 1
    for _ in range(HALVINGS):
        mu = (low + high) / 2
        above = (a - mu).clamp(0, 1).sum(1, keepdim=True) > 1
        low, high = torch.where(above, mu, low), torch.where(above, high, mu)
    return (a - (low + high) / 2).clamp(0, 1).to(rows)


__all__ = ["project"]
