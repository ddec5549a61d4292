"""Linear algebra of text vectors: low-rank maps, Gram matrices, and the pairs of a closed-form edit.

Everything is float64 inside, but for the products of G = Σ W₀ᵀW₀; rows have the text encoder's precision and are
converted in blocks.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from efface.errors import BadInput

BLOCK = 4096  # rows that are float64 at a time
TILE = 192  # width of the tiles of a symmetric product, of which only the upper half is computed
SHARED = 4  # rows per goal from which sums of rows are cheaper than products
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
    def none(cls, dim: int) -> "Preserved":
        """Preserve nothing."""
        return cls(torch.zeros(0, dim, dtype=torch.float64))

    @classmethod
    def of(cls, rows: Float[Tensor, "n dim"], scale: float = 1.0) -> "Preserved":
        """Preserve these vectors with weight `scale`; raises `BadInput` for a bad scale or value."""
        return cls.gather([rows], rows.shape[1], scale)

    @classmethod
    def gather(cls, batches: Iterable[Tensor], dim: int, scale: float = 1.0) -> "Preserved":
        """Preserve the rows of all batches (n, dim), with at most BLOCK rows, a batch and a Gram matrix in memory."""
        check_scale("preserve_scale", scale)
        waiting: list[Tensor] = [torch.zeros(0, dim)]
        total: Tensor | None = None
        for batch in batches:
            check_finite("preserved text vectors", batch)
            waiting.append(batch)
            if sum(map(len, waiting)) > max(BLOCK, dim):
                part = gram(torch.cat(waiting))
                total, waiting = part if total is None else total.add_(part), waiting[:1]
        rows = torch.cat(waiting)
        if total is None and len(rows) <= dim:
            return cls(rows.double() * math.sqrt(scale))
        part = gram(rows)
        return cls(rows[:0].double(), scale * (part if total is None else total.add_(part)))

    def rescaled(self, factor: float) -> "Preserved":
        """Return the same vectors with their weight multiplied by `factor`."""
        return Preserved(self.rows * math.sqrt(factor), None if self.gram is None else self.gram * factor)

    def joined(self, other: "Preserved") -> "Preserved":
        """Return both sets as one: rows while both are few, else the sum of their Gram matrices."""
        if self.gram is None and other.gram is None:
            return Preserved(torch.cat([self.rows, other.rows]))
        return Preserved(self.rows[:0], self.matrix() + other.matrix())

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
        moved = step.left.T @ system
        across = (self.mixed @ step.left) @ step.right
        within = step.right.T @ ((moved @ step.left) @ step.right)
        return Outputs(self.normal + across + across.T + within, self.mixed + step.right.T @ moved)


class Pairs(NamedTuple):
    """Hold the edited vectors, their goals and weights, and the map T₀ that the edit starts from.

    which: the goal of each row; none: as many goals as rows, in their order.
    """

    rows: Float[Tensor, "n dim"]
    goals: Float[Tensor, "m dim"]
    weights: Float64[Tensor, " n"]
    start: Factors | None = None
    which: Int64[Tensor, " n"] | None = None

    def goals_of(self, part: slice = slice(None)) -> Float[Tensor, "k dim"]:
        """Return the goal of each of some rows."""
        return self.goals[part] if self.which is None else self.goals[self.which[part]]

    def shift(self, part: slice = slice(None)) -> Float64[Tensor, "k dim"]:
        """Return S = g − T₀c of some rows, in float64 (a difference of float32 would cost eight digits)."""
        moved = self.rows[part] if self.start is None else self.start.of(self.rows[part])
        return self.goals_of(part).double() - moved.double()

    def blocks(self) -> Iterator[slice]:
        """Yield slices of at most BLOCK rows."""
        for start in range(0, len(self.rows), BLOCK):
            yield slice(start, start + BLOCK)

    def pull(self, edited: Float64[Tensor, "dim dim"]) -> tuple[Float64[Tensor, "dim dim"], float]:
        """Return Σ w s cᵀ and Σ w‖s‖² of the shifts s; edited: Σ w c cᵀ.

        Where many rows share a goal, their weighted sum is taken first, Σ w g cᵀ = Σ_g g (Σ w c)ᵀ, so that no product
        runs over all rows.
        """
        if self.which is not None and SHARED * len(self.goals) <= len(self.rows):
            sums = torch.zeros(len(self.goals), self.rows.shape[1], dtype=torch.float64)
            for part in self.blocks():
                sums.index_add_(0, self.which[part], self.rows[part].double() * self.weights[part, None])
            wanted, start = self.goals.double(), self.start or Factors.identity(self.rows.shape[1])
            total = torch.zeros(len(self.goals), dtype=torch.float64).index_add_(0, self.which, self.weights)
            before = start.of(edited).T  # T₀ Σ w c cᵀ: the sum is symmetric
            length = (total * wanted.square().sum(1)).sum() - 2 * (start.of(sums) * wanted).sum()
            return wanted.T @ sums - before, max(float(length + start.of(before).trace()), 0.0)
        pull, length = torch.zeros_like(edited), 0.0
        for part in self.blocks():
            shift = self.shift(part)
            scaled = shift * self.weights[part, None]
            pull.addmm_(scaled.T, self.rows[part].double())
            length += float((scaled * shift).sum())
        return pull, length

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
        goals.index_add_(0, group, self.goals_of().double() * (self.weights / weights[group])[:, None])
        one = torch.zeros(len(seen), dtype=torch.long).scatter_(0, group, torch.arange(len(self.rows)))
        return Pairs(self.rows[one], goals, weights, self.start)


def gram(
    rows: Float[Tensor, "n dim"], weights: Float64[Tensor, " n"] | None = None, dtype: torch.dtype = torch.float64
) -> Float64[Tensor, "dim dim"]:
    """Return Σ w r rᵀ over rows r, in blocks of rows and in tiles, the upper half only.

    dtype: of the products within a block; the sum of the blocks is float64.
    """
    dim = rows.shape[1]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    part = total if dtype == torch.float64 else torch.zeros(dim, dim, dtype=dtype)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].to(dtype)
        if weights is not None:
            block = block * weights[start : start + BLOCK, None].sqrt()
        for tile in range(0, dim, TILE):
            part[tile : tile + TILE, tile:].addmm_(block[:, tile : tile + TILE].T, block[:, tile:])
        if part is not total:
            total += part
            part.zero_()
    return total.triu() + total.triu(1).T


def weight_gram(weights: Iterable[Tensor]) -> Float64[Tensor, "dim dim"]:
    """Return G = Σ WᵀW over matrices (out, dim) of one width; raises `BadInput` when there are none.

    Products of matrices up to float32 are float32: an error E of G is that of slightly other matrices, for eq. 8 reads
    G by TᵀGT and TᵀG only.
    """
    parts: list[list[Tensor]] = [[]]
    for weight in weights:
        if sum(map(len, parts[-1])) >= BLOCK:  # one by one, matrices of few rows would take twice the time
            parts.append([])
        parts[-1].append(weight.detach().cpu())
    if not parts[0]:
        raise BadInput("there are no key or value matrices to edit")
    wide = any(weight.dtype == torch.float64 for part in parts for weight in part)
    dtype = torch.float64 if wide else torch.float32
    total = gram(torch.cat(parts[0]), dtype=dtype)
    for part in parts[1:]:
        total += gram(torch.cat(part), dtype=dtype)
    return total


def check_scale(name: str, value: float, positive: bool = False) -> None:
    """Raise `BadInput` unless value is finite and at least 0 (above 0 if `positive`)."""
    if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
        raise BadInput(f"{name} must be a number {'above 0' if positive else 'of at least 0'}, got {value}")


def check_finite(what: str, rows: Tensor) -> None:
    # NaN and inf survive a sum, which needs no copy; a sum of large numbers may overflow, so that is looked at again
    if not (math.isfinite(float(rows.sum())) or bool(torch.isfinite(rows).all())):
        raise BadInput(f"the {what} contain values that are not finite numbers")
