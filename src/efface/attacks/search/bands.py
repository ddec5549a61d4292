"""Bands of cosines: vectors at given cosines to a reference and not too alike (Pham et al. 2024, eq. 4)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.errors import BadInput

TOLERANCE = 1e-3  # of every cosine
AIM = 1e-4  # how far inside its bounds a projected cosine is aimed at
ROUNDS, PATIENCE = 4000, 100  # of projection; it ends when the worst bound does not improve by 1 % in so many


@dataclass(frozen=True, eq=False)
class Bands:
    """Hold the allowed cosines of n vectors, which are compared flattened.

    reference: (1, k, dim). low, high: to the reference, one band a vector. pair_low, pair_high: of every two vectors
    that `together` marks.
    """

    reference: Float[Tensor, "1 k dim"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    pair_low: float
    pair_high: float
    together: Bool[Tensor, "n n"]

    def cosines(self, vectors: Float[Tensor, "n k dim"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
        """Return the cosine of each vector to the reference, and of every two vectors."""
        unit = _unit(vectors.flatten(1))
        axis = _unit(self.reference.flatten(1))[0].to(unit)
        return unit @ axis, unit @ unit.T

    def excess(self, vectors: Float[Tensor, "n k dim"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
        """Return how far each cosine is above (positive) or below (negative) its bounds, 0 within; differentiable."""
        to, pairs = self.cosines(vectors)
        return _beyond(to, self.low, self.high), _beyond(pairs, self.pair_low, self.pair_high) * self.together

    def worst(self, vectors: Float[Tensor, "n k dim"]) -> float:
        """Return the largest violation of any bound."""
        return max(float(one.abs().max()) for one in self.excess(vectors.double()))

    def penalty(self, vectors: Float[Tensor, "n k dim"]) -> Float[Tensor, ""]:
        """Return the sum of the squared violations, every pair once."""
        to, pairs = self.excess(vectors)
        return to.square().sum() + pairs.square().sum() / 2

    @torch.no_grad()
    def project(self, vectors: Float[Tensor, "n k dim"]) -> Float[Tensor, "n k dim"]:
        """Return vectors of the same norms that satisfy every bound, near the given ones.

        A vector's cosine to the reference is clamped to its band by moving it towards or away from the reference, the
        projection onto one band; pairs beyond their bounds are turned apart, or together, by a Newton step of their
        angle, damped by the number of pairs that each vector is in. The two alternate until every bound holds.
        Float64. Raises `BadInput` when no such vectors are found.
        """
        flat = vectors.flatten(1).double()
        axis = _unit(self.reference.flatten(1).double())[0]
        norms, unit = flat.norm(dim=1, keepdim=True), _unit(flat)
        (low, high), apart = self._aimed(), self.together.double()
        best, since = math.inf, 0
        for _ in range(ROUNDS):
            along = unit @ axis
            s = torch.minimum(torch.maximum(along, self.low.double()), self.high.double())[:, None]
            unit = s * axis + (1 - s.square()).clamp(min=0).sqrt() * _unit(unit - along[:, None] * axis)
            pairs = unit @ unit.T
            beyond = _beyond(pairs, low, high) * apart
            worst = float(beyond.abs().max())
            best, since = (worst, 0) if worst < 0.99 * best else (best, since + 1)
            if worst <= AIM / 2 or since > PATIENCE:
                break
            count = 1 + (beyond != 0).sum(1)
            turn = beyond / (1 - pairs.square()).clamp(min=0.05) / (count[:, None] * count).sqrt()
            unit = _unit(unit - (turn @ unit - (turn * pairs).sum(1)[:, None] * unit))
        found = (norms * unit).to(vectors).view_as(vectors)
        if self.worst(found) > TOLERANCE:
            raise BadInput(
                f"no {len(found)} embeddings were found at cosines of {float(self.low.min()):g} to "
                f"{float(self.high.max()):g} to the name with pairs at {self.pair_low:g} to {self.pair_high:g} (off by "
                f"{self.worst(found):.2g}): widen the pairs' range, or take fewer"
            )
        return found

    def _aimed(self) -> tuple[float, float]:
        """Return the pairs' bounds, a little inside where there is room."""
        room = min(AIM, (self.pair_high - self.pair_low) / 4)
        return self.pair_low + room, self.pair_high - room


def least_pairs(count: int, nearest: float) -> float:
    """Return a lower bound of the largest cosine of two vectors, where all have at least `nearest` to a reference.

    Their sum has a length of at least n s along it, so that n + n(n − 1) c ≥ (n s)² for the mean c of the pairs: c is
    at least (n s² − 1) / (n − 1). In n or more dimensions a simplex around the reference reaches it.
    """
    return -1.0 if count < 2 else (count * nearest**2 - 1) / (count - 1)


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _beyond(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return (value - high).clamp(min=0) - (low - value).clamp(min=0)
