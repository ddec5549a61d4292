"""Closed-form edits of cross-attention: one ridge least squares that serves all key and value matrices.

For text vectors c, goals g and a start T₀, the W that minimises
Σ w‖W c − W₀ g‖² + Σ p‖W k − W₀T₀ k‖² + λ‖W − W₀T₀‖² over edited pairs (c, g) and preserved vectors k is W = W₀·T,

    T = T₀ + Sᵀ X,   S = g − T₀c,   X = w c M⁻¹,   M = λI + Σ w c cᵀ + Σ p k kᵀ,

with the same T for every W₀, because M depends on text vectors only. So M is factored once for all layers, in
float64 (its condition number nears 1e6 on CLIP's vectors, where float32 is wrong by a percent), and no
inverse is formed. With fewer rows A = √w c than their width, A M⁻¹ = (λI + A Aᵀ)⁻¹ A is cheaper.

Sources: TIME (Orgad et al. 2023, eq. 3), UCE (Gandikota et al. 2024, eq. 7), RECE (Gong et al. 2024, eq. 2
to 8).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from efface.errors import BadInput
from efface.methods.closed_form.matrices import Factors, Outputs, Pairs, Preserved, check_finite, check_scale, gram

Regularizer = Literal["zero", "standard", "1st", "2nd", "both"]


class Fit(NamedTuple):
    """Hold the solution of one least squares and how good it is.

    step: T − T₀ as factors.
    residual: distance left between edited vectors and goals, as a share of what it was (0: none is left).
    drift: distance between preserved vectors and where they should be, as a share of their length.
    condition: estimated condition number of M.
    """

    step: Factors
    residual: float
    drift: float
    condition: float


def solve(
    rows: Float[Tensor, "n dim"],
    goals: Float[Tensor, "m dim"],
    ridge: float,
    weights: Float[Tensor, " n"] | float = 1.0,
    preserved: Preserved | None = None,
    start: Factors | None = None,
    restore: bool = False,
    which: Int64[Tensor, " n"] | None = None,
) -> Fit:
    """Find the step T − T₀ that brings each row to its goal, in weighted least squares with a ridge λ.

    rows, goals: text vectors c and g, n > 0; equal rows are merged. ridge: λ > 0. weights: above 0.
    which: the goal of each row where several share one; by default row i goes to goal i.
    preserved: vectors that stay where T₀ has them, or, if `restore`, go back to where they were without T₀.
    start: T₀, the identity by default.

    Raises `BadInput` for no rows, values that are not finite, λ ≤ 0 or NaN, or λ too small for float64.
    """
    check_scale("ridge", ridge, positive=True)
    check_finite("text vectors", rows)
    check_finite("targets", goals)
    if not len(rows):
        raise BadInput("a closed-form edit needs at least one text vector, got none")
    scale = torch.full((len(rows),), weights) if isinstance(weights, float | int) else weights
    for extreme in (scale.min(), scale.max()):
        check_scale("erase_scale", float(extreme), positive=True)
    pairs = Pairs(rows, goals, scale.double(), start, which).merged()
    preserved = preserved or Preserved(rows[:0].double())
    back = start if restore else None
    if preserved.gram is None and len(pairs.rows) + len(preserved.rows) <= rows.shape[1]:
        return _solve_few(pairs, ridge, preserved.rows, back)
    return _solve_many(pairs, ridge, preserved, back)


def _solve_few(pairs: Pairs, ridge: float, preserved: Tensor, back: Factors | None) -> Fit:
    """Solve with the n × n matrix λI + A Aᵀ of all rows A, when n is at most the width."""
    root = pairs.weights.sqrt()[:, None]
    shift = root * pairs.shift()
    every = torch.cat([root * pairs.rows.double(), preserved])
    kernel = every @ every.T
    largest = ridge + _largest(kernel.__matmul__, len(kernel))
    chol = cholesky(kernel, ridge)
    solved = torch.cholesky_solve(every, chol)  # A M⁻¹
    if back is None:
        step = Factors(shift.T.contiguous(), solved[: len(shift)])
        restored = torch.zeros_like(preserved)
    else:
        restored = preserved - back.of(preserved)
        step = Factors(torch.cat([shift, restored]).T.contiguous(), solved)
    missed = torch.cat([shift, restored]) - (every @ step.right.T) @ step.left.T
    low = len(every) < every.shape[1]  # then λ itself is an eigenvalue of M
    return Fit(
        step,
        _share(float(missed[: len(shift)].norm()), float(shift.norm())),
        _share(float(missed[len(shift) :].norm()), float(preserved.norm())),
        largest / ridge if low else largest * _largest_inverse(chol),
    )


def _solve_many(pairs: Pairs, ridge: float, preserved: Preserved, back: Factors | None) -> Fit:
    """Solve with the dim × dim matrix M."""
    edited, preserved_gram = gram(pairs.rows, pairs.weights), preserved.matrix()
    normal = edited + preserved_gram
    chol = cholesky(normal, ridge)
    pull, length = pairs.pull(edited)
    lost = torch.zeros_like(normal) if back is None else -(back.left @ back.right)  # I − T₀
    change = torch.cholesky_solve((pull + lost @ preserved_gram).T, chol).T.contiguous()
    # Σ w‖s − Δc‖² and Σ p‖(I − T₀)k − Δk‖² from the Gram matrices, without going through the rows again
    missed = length - 2 * float((change * pull).sum()) + float(((change @ edited) * change).sum())
    off = lost - change
    moved, extent = float(((off @ preserved_gram) * off).sum()), float(preserved_gram.trace())
    narrow = back is None and 2 * len(pairs.rows) <= len(change)
    return Fit(
        _narrow(pairs, chol) if narrow else Factors(change, torch.eye(len(change), dtype=torch.float64)),
        _share(math.sqrt(max(missed, 0.0)), math.sqrt(length)),
        _share(math.sqrt(max(moved, 0.0)), math.sqrt(max(extent, 0.0))),
        condition(normal, chol, ridge),
    )


def _narrow(pairs: Pairs, chol: Tensor) -> Factors:
    """Return Sᵀ and X = w c M⁻¹, factors as few as the rows."""
    solved = torch.cholesky_solve((pairs.rows.double() * pairs.weights[:, None]).T, chol)
    return Factors(pairs.shift().T.contiguous(), solved.T.contiguous())


def derive(
    rows: Float[Tensor, "n dim"],
    outputs: Outputs,
    ridge: float,
    regularizer: Regularizer = "zero",
    targets: Float[Tensor, "n dim"] | None = None,
) -> Float64[Tensor, "n dim"]:
    """Return the c' for which edited matrices give what the original ones give for c: RECE eq. 4 with a regulariser.

    Minimises Σ ‖W c' − W₀ c‖² + λ r(c') over all matrices, where r is
    zero: ‖c'‖², eq. 7 and 8 of the paper;
    standard: ‖c' − t‖², t the embedding of the concept's target;
    1st: Σ ‖W c' − W c‖², 2nd: ‖c' − c‖², both: their sum; the surrogate of RECE's code, which lets c' be near c.
    targets: t, needed for standard. Raises `BadInput` for λ ≤ 0 or NaN (for λ = 0 see `undo`), or a singular system.
    """
    check_scale("derive_ridge", ridge, positive=True)
    normal, wide = outputs.normal, rows.double()
    wanted = outputs.mixed @ wide.T
    if regularizer == "standard":
        if targets is None:
            raise BadInput("the standard regularizer needs the embeddings of the targets")
        wanted = wanted + ridge * targets.double().T
    if regularizer in ("2nd", "both"):
        wanted = wanted + ridge * wide.T
    if regularizer in ("1st", "both"):
        wanted = wanted + ridge * (normal @ wide.T)
        normal = (1 + ridge) * normal
    chol = cholesky(normal, 0.0 if regularizer == "1st" else ridge)
    return torch.cholesky_solve(wanted, chol).T.contiguous()


def undo(rows: Float[Tensor, "n dim"], change: Factors) -> Float64[Tensor, "n dim"]:
    """Return T⁻¹c, for which W₀T gives exactly what W₀ gives for c: RECE eq. 5, whatever the matrices are.

    Raises `BadInput` when T has no inverse.
    """
    solved, info = torch.linalg.solve_ex(change.matrix(), rows.double().T)
    if int(info):
        raise BadInput("the edit has no inverse: derive with a ridge above 0")
    return solved.T.contiguous()


def cholesky(matrix: Float64[Tensor, "dim dim"], ridge: float) -> Float64[Tensor, "dim dim"]:
    """Return the Cholesky factor of matrix + λI; raises `BadInput` when that is singular in float64."""
    matrix = matrix.clone()
    matrix.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise BadInput(f"ridge {ridge:g} is too small for these vectors: the system is singular in float64")
    return factor


def condition(matrix: Float64[Tensor, "dim dim"], chol: Float64[Tensor, "dim dim"], ridge: float) -> float:
    """Estimate the condition number of matrix + λI, from below; chol: its Cholesky factor."""
    return (ridge + _largest(matrix.__matmul__, len(matrix))) * _largest_inverse(chol)


def _largest(apply: Callable[[Tensor], Tensor], size: int, steps: int = 24) -> float:
    """Estimate the largest eigenvalue of a positive semidefinite map, from below, by power iteration."""
    vector, value = torch.ones(size, dtype=torch.float64) / math.sqrt(size), 0.0
    for _ in range(steps):
        vector = apply(vector)
        value = float(vector.norm())
        if value == 0:
            break
        vector = vector / value
    return value


def _largest_inverse(chol: Tensor) -> float:
    return _largest(lambda vector: torch.cholesky_solve(vector[:, None], chol)[:, 0], len(chol))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
