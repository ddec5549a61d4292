"""Linear algebra of text vectors: low-rank maps, Gram matrices, and the pairs of a closed-form edit.

Everything is float64 inside; rows have the text encoder's precision and are converted in blocks.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from efface.errors import BadInput

BLOCK = 4096  # rows that are float64 at a time
TILE = 96  # width of the tiles of a symmetric product, of which only the upper half is computed
MERGE_LIMIT = 8192  # above this many rows, finding the equal ones costs more than it saves


class Factors(NamedTuple):
    """Hold a map of text vectors T = I + left·right, in float64."""

    left: Float64[Tensor, "dim r"]
    right: Float64[Tensor, "r dim"]

    @classmethod
    def identity(cls, dim: int) -> "Factors":
        """Return T = I, factors of rank 0."""
        return cls(torch.zeros(dim, 0, dtype=torch.float64), torch.zeros(0, dim, dtype=torch.float64))

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        """Return T itself."""
        return torch.eye(len(self.left), dtype=torch.float64).addmm_(self.left, self.right)

    def of(self, rows: Float[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Return T·e for every row e."""
        rows = rows.double()
        return rows + (rows @ self.right.T) @ self.left.T

    def plus(self, step: "Factors") -> "Factors":
        """Return T + step.left·step.right."""
        return Factors(torch.cat([self.left, step.left], 1), torch.cat([self.right, step.right]))

    def pushed(self, step: "Factors") -> "Factors":
        """Return the factors of T·(step.left·step.right), what an edit of the already edited weights adds to T."""
        return Factors(step.left + self.left @ (self.right @ step.left), step.right)

    def compressed(self, tolerance: float = 1e-9) -> "Factors":
        """Return the same map at its numerical rank, with balanced factors that lose least in float32.

        tolerance: singular values below this share of the largest are dropped. A rank above half the
            width is not reduced.
        """
        dim, rank = self.left.shape
        if rank > dim:
            return Factors(self.left @ self.right, torch.eye(dim, dtype=torch.float64))
        if rank == 0 or 2 * rank > dim:
            return self
        ql, rl = torch.linalg.qr(self.left)
        qr, rr = torch.linalg.qr(self.right.T)
        u, s, vh = torch.linalg.svd(rl @ rr.T)
        kept = s > tolerance * s[0]
        root = s[kept].sqrt()
        return Factors(ql @ (u[:, kept] * root), (root[:, None] * vh[kept]) @ qr.T)


@dataclass(frozen=True, eq=False)
class Preserved:
    """Hold the preserved text vectors: themselves when few, their Gram matrix when many.

    Both are scaled by the preserve scale. The Gram matrix of a fixed set can be computed once and reused.
    """

    rows: Float64[Tensor, "n dim"]
    gram: Float64[Tensor, "dim dim"] | None = None

    @classmethod
    def of(cls, rows: Float[Tensor, "n dim"], scale: float = 1.0) -> "Preserved":
        """Preserve these vectors with weight `scale`; raises `BadInput` for a bad scale or value."""
        return cls.gather([rows], rows.shape[1], scale)

    @classmethod
    def gather(cls, batches: Iterable[Tensor], dim: int, scale: float = 1.0) -> "Preserved":
        """Preserve the rows of all batches (n, dim), with at most `dim` rows, a batch and a Gram matrix in memory."""
        check_scale("preserve_scale", scale)
        waiting = torch.zeros(0, dim)
        total: Tensor | None = None
        for batch in batches:
            check_finite("preserved text vectors", batch)
            waiting = torch.cat([waiting, batch])
            if len(waiting) > dim:
                total = gram(waiting) if total is None else total + gram(waiting)
                waiting = waiting[:0]
        if total is None:
            return cls(waiting.double() * math.sqrt(scale))
        return cls(waiting[:0].double(), scale * (total + gram(waiting)))

    def rescaled(self, factor: float) -> "Preserved":
        """Return the same vectors with their weight multiplied by `factor`."""
        return Preserved(self.rows * math.sqrt(factor), None if self.gram is None else self.gram * factor)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        """Return the Gram matrix."""
        return gram(self.rows) if self.gram is None else self.gram


class Outputs(NamedTuple):
    """Hold the Gram matrices of W = W₀T for eq. 8 of RECE, updated with each step of T.

    normal: Σ WᵀW of the edited matrices, TᵀGT with G = Σ W₀ᵀW₀.
    mixed: Σ WᵀW₀, TᵀG.
    """

    normal: Float64[Tensor, "dim dim"]
    mixed: Float64[Tensor, "dim dim"]

    @classmethod
    def of(cls, system: Float64[Tensor, "dim dim"]) -> "Outputs":
        """Return the outputs of unedited matrices with Gram matrix G."""
        return cls(system, system)

    def plus(self, step: Factors, system: Float64[Tensor, "dim dim"]) -> "Outputs":
        """Return the outputs of W₀(T + step.left·step.right)."""
        across = (self.mixed @ step.left) @ step.right
        within = step.right.T @ ((step.left.T @ system @ step.left) @ step.right)
        mixed = self.mixed + step.right.T @ (step.left.T @ system)
        return Outputs(self.normal + across + across.T + within, mixed)


class Pairs(NamedTuple):
    """Hold the edited vectors, their goals and weights, and the map T₀ that the edit starts from."""

    rows: Float[Tensor, "n dim"]
    goals: Float[Tensor, "n dim"]
    weights: Float64[Tensor, " n"]
    start: Factors | None = None

    def shift(self, part: slice = slice(None)) -> Float64[Tensor, "m dim"]:
        """Return S = g − T₀c of some rows, in float64 (a difference of float32 would cost eight digits)."""
        moved = self.rows[part] if self.start is None else self.start.of(self.rows[part])
        return self.goals[part].double() - moved.double()

    def blocks(self) -> Iterator[slice]:
        """Yield slices of at most BLOCK rows."""
        for start in range(0, len(self.rows), BLOCK):
            yield slice(start, start + BLOCK)

    def merged(self) -> "Pairs":
        """Merge equal rows: weights add up and goals average, which does not change the least squares.

        The start-of-text vector is the same in every prompt of a causal encoder, so there are always some.
        """
        if len(self.rows) > MERGE_LIMIT:
            return self
        seen: dict[bytes, int] = {}
        keys = self.rows.contiguous().numpy()
        group = torch.tensor([seen.setdefault(key.tobytes(), len(seen)) for key in keys], dtype=torch.long)
        if len(seen) == len(self.rows):
            return self
        weights = torch.zeros(len(seen), dtype=torch.float64).index_add_(0, group, self.weights)
        goals = torch.zeros(len(seen), self.goals.shape[1], dtype=torch.float64)
        goals.index_add_(0, group, self.goals.double() * (self.weights / weights[group])[:, None])
        one = torch.zeros(len(seen), dtype=torch.long).scatter_(0, group, torch.arange(len(self.rows)))
        return Pairs(self.rows[one], goals, weights, self.start)


def gram(rows: Float[Tensor, "n dim"], weights: Float64[Tensor, " n"] | None = None) -> Float64[Tensor, "dim dim"]:
    """Return Σ w r rᵀ over rows r in float64, in blocks of rows and in tiles, the upper half only."""
    dim = rows.shape[1]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].double()
        if weights is not None:
            block = block * weights[start : start + BLOCK, None].sqrt()
        columns = block.T.contiguous()
        for tile in range(0, dim, TILE):
            total[tile : tile + TILE, tile:].addmm_(columns[tile : tile + TILE], columns[tile:].T)
    return total.triu() + total.triu(1).T


def weight_gram(weights: Iterable[Tensor]) -> Float64[Tensor, "dim dim"]:
    """Return G = Σ WᵀW over matrices (out, dim) of one width; raises `BadInput` when there are none."""
    parts: list[list[Tensor]] = [[]]
    for weight in weights:
        if sum(map(len, parts[-1])) >= BLOCK:  # one by one, matrices of few rows would take twice the time
            parts.append([])
        parts[-1].append(weight.detach().cpu())
    if not parts[0]:
        raise BadInput("there are no key or value matrices to edit")
    total = gram(torch.cat(parts[0]))
    for part in parts[1:]:
        total += gram(torch.cat(part))
    return total


def check_scale(name: str, value: float, positive: bool = False) -> None:
    """Raise `BadInput` unless value is finite and at least 0 (above 0 if `positive`)."""
    if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
        raise BadInput(f"{name} must be a number {'above 0' if positive else 'of at least 0'}, got {value}")


def check_finite(what: str, rows: Tensor) -> None:
    if not bool(torch.isfinite(rows).all()):
        raise BadInput(f"the {what} contain values that are not finite numbers")
