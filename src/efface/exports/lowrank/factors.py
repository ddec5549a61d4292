"""Two factors for the difference of each weight, ΔW = up @ down.

Text maps have them exactly: W (I + L R) - W = (W L) R. Down has orthonormal rows that span those of R, the same for all
weights; with R itself, rows that are nearly parallel cancel, which half precision does not hold. Of dense differences
some singular values are kept: no matrix of that rank is nearer (Eckart and Young 1936).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from efface.edits.edit import Edit
from efface.edits.parts import TextMap

NOTHING = 1e-8  # share of a text map that is rounding: directions below it are left out of an exact export


class Factors(NamedTuple):
    """Hold the factors of one weight's difference, and what its singular values left out (Frobenius norm)."""

    up: Float[Tensor, "out r"]
    down: Float[Tensor, "r inner"]
    left_out: float = 0.0

    @property
    def rank(self) -> int:
        """Return the number of rows of down."""
        return self.down.shape[0]

    def padded(self, rank: int) -> "Factors":
        """Return the same product with more rows and columns, of zeros."""
        more = rank - self.rank
        return Factors(pad(self.up, (0, more)), pad(self.down, (0, 0, 0, more)), self.left_out)


class Part(NamedTuple):
    """Hold a text map, W -> W left right, and what was cut off from its right factor ("rest", for the same left)."""

    names: tuple[str, ...]
    left: Float[Tensor, "dim k"]
    right: Float[Tensor, "k dim"]
    whole: Float[Tensor, "dim r"]
    rest: Float[Tensor, "r dim"]


def parts(edit: Edit, weights: Mapping[str, Tensor], rank: int | None, error: float | None) -> list[Part]:
    """Return an edit's text maps with orthonormal rows in their right factors, which half precision holds well.

    rank, error: directions to keep of each, or the share of its differences that may be left out, over all weights.
    """
    return [_part(text_map, weights, rank, error) for text_map in edit.maps]


def _part(text_map: TextMap, weights: Mapping[str, Tensor], rank: int | None, error: float | None) -> Part:
    """Return a text map whose right factor has the rows that matter most, the same for all weights.

    The rows are eigenvectors of the sum of (W L R)^T (W L R) over the weights W: no others of that number leave out
    less. It has the rank of R, so they are found in the space of R's rows.
    """
    left, right = text_map.left.double(), text_map.right.double()
    ups = (weights[name].flatten(1).double() @ left for name in text_map.names)
    gram = sum((up.mT @ up for up in ups), torch.zeros(left.shape[1], left.shape[1], dtype=torch.double))
    rows, inner = torch.linalg.qr(right.mT)  # right = inner^T rows^T
    energy, vectors = torch.linalg.eigh(inner @ gram @ inner.mT)
    energy, vectors = energy.flip(0).clamp(min=0), vectors.flip(1)
    tails = energy.flip(0).cumsum(0).flip(0).sqrt()
    count = rank if rank is not None else int((tails > (error or NOTHING) * tails[0]).sum())
    kept = (rows @ vectors[:, : max(1, min(count, len(energy)))]).mT
    rest = right - right @ kept.mT @ kept
    small, kind = left @ (right @ kept.mT), text_map.left.dtype
    return Part(text_map.names, small.to(kind), kept.to(kind), text_map.left, rest.to(kind))


def factors(
    maps: Sequence[Part], delta: Tensor | None, name: str, weight: Tensor, rank: int | None, error: float | None
) -> Factors:
    """Return the factors of the difference of one weight (a matrix, or a convolution as a matrix).

    maps: the edit's text maps. delta: its dense difference of this weight, cut to a rank or an error.
    """
    matrix = weight.flatten(1)
    found = [_map(part, matrix) for part in maps if name in part.names]
    if delta is not None:
        found.append(cut(delta.float().flatten(1), rank, error))
    up, down = torch.cat([part.up for part in found], 1), torch.cat([part.down for part in found], 0)
    left_out = sum(part.left_out for part in found)
    if len(down) > min(matrix.shape):  # stacked maps: no more directions than the matrix has
        whole = cut(up @ down, min(matrix.shape), None)
        return Factors(whole.up, whole.down, left_out)
    return Factors(up, down, left_out)


def _map(part: Part, matrix: Float[Tensor, "out inner"]) -> Factors:
    """Return the factors of a text map for one weight, and what its rank leaves out."""
    wide = matrix.to(part.left.dtype)
    return Factors(wide @ part.left, part.right, float((wide @ part.whole @ part.rest).norm()))


def cut(delta: Float[Tensor, "out inner"], rank: int | None, error: float | None) -> Factors:
    """Return the nearest factors of a rank, or of the smallest rank that leaves out at most a share of the norm."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    tails = values.double().square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what is left out from each on
    if rank is None:
        rank = int((tails > (error or 0.0) * tails[0]).sum())
    rank = max(1, min(rank, len(values)))
    rest = float(tails[rank]) if rank < len(values) else 0.0
    roots = values[:rank].sqrt()  # both factors of one size, for half precision
    return Factors(left[:, :rank] * roots, roots[:, None] * right[:rank], rest)
