"""The theorem is the test: gradients vanish at the result, limits hold, and a plain float64 inverse agrees."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import BadInput
from efface.methods.closed_form.least_squares import derive, solve, undo
from efface.methods.closed_form.matrices import Factors, Outputs, Pairs, Preserved, gram, weight_gram
from efface.methods.closed_form.states import joined

D = torch.float64
SHAPES = st.tuples(st.integers(1, 12), st.integers(0, 20), st.integers(2, 16))  # edited rows, kept rows, width


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


def random_map(dim: int, seed: int = 9) -> Factors:
    return Factors(0.3 * rows(dim, 2, seed=seed), rows(2, dim, seed=seed + 1))


def edited(bases: list[Tensor], change: Factors) -> Outputs:
    system = weight_gram(bases)
    return Outputs.of(system).plus(change, system)


def plain(c, g, ridge, w=None, k=None, p=1.0, start=None, restore=False):
    """Solve eq. 3 as it stands, with an inverse: T = (λT₀ + Σ w g cᵀ + Σ p k' kᵀ) M⁻¹."""
    c, g = c.double(), g.double()
    eye = torch.eye(c.shape[1], dtype=D)
    w = torch.ones(len(c), dtype=D) if w is None else w
    k = c[:0] if k is None else k.double()
    start = eye if start is None else start
    normal = ridge * eye + c.T @ (w[:, None] * c) + p * k.T @ k
    goal = ridge * start + g.T @ (w[:, None] * c) + p * (k if restore else k @ start.T).T @ k
    return goal @ torch.linalg.inv(normal)


def objective(weight, base, c, g, ridge, w, k, p, start):
    """Return eq. 2 with W₀ = base: Σ w‖W c − W₀ g‖² + p Σ ‖W k − W₀T₀ k‖² + λ‖W − W₀T₀‖²."""
    old = base @ start
    return (
        (w[:, None] * (c @ weight.T - g @ base.T).square()).sum()
        + p * (k @ weight.T - k @ old.T).square().sum()
        + ridge * (weight - old).square().sum()
    )


@given(SHAPES, st.floats(1e-3, 10), st.floats(0.05, 5), st.integers(0, 99))
def test_agrees_with_a_plain_inverse(shape, ridge, p, seed):
    n, m, dim = shape
    c, g, k = rows(n, dim, seed=seed), rows(n, dim, seed=seed + 1), rows(m, dim, seed=seed + 2)
    w = rows(n, seed=seed + 3).abs() + 0.1
    start = random_map(dim, seed)
    for restore in (False, True):
        fit = solve(c, g, ridge, w, Preserved.of(k, p), start, restore)
        expected = plain(c, g, ridge, w, k, p, start.matrix(), restore)
        torch.testing.assert_close(start.plus(fit.step).matrix(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("n", "m", "dim"), [(3, 4, 24), (10, 14, 24), (5, 60, 24), (60, 5, 24)])
def test_gradient_of_the_objective_is_zero(n, m, dim):
    """Eq. 2 for matrices of any height, by autograd, with weights and a start that is not the identity."""
    c, g, k, w = rows(n, dim), rows(n, dim, seed=1), rows(m, dim, seed=2), rows(n, seed=3).abs() + 0.1
    start = random_map(dim)
    fit = solve(c, g, 0.5, w, Preserved.of(k, 0.7), start)
    change = start.plus(fit.step).matrix()
    for height in (7, 40):
        base = rows(height, dim, seed=height)
        weight = (base @ change).requires_grad_()
        objective(weight, base, c, g, 0.5, w, k, 0.7, start.matrix()).backward()
        off = (base @ start.matrix()).requires_grad_()
        objective(off, base, c, g, 0.5, w, k, 0.7, start.matrix()).backward()
        assert weight.grad is not None
        assert off.grad is not None
        assert weight.grad.norm() < 1e-11 * off.grad.norm()


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
@pytest.mark.parametrize("regularizer", ["zero", "standard", "1st", "2nd", "both"])
def test_gradient_of_the_derivation_is_zero(ridge, regularizer):
    """Eq. 7, Σ ‖W_new c' − W_old c‖² + λ‖c'‖² over several matrices, and the regularisers of the code."""
    dim = 12
    bases = [rows(h, dim, seed=h) for h in (9, 20, 31)]
    change = random_map(dim)
    c = rows(5, dim, seed=4)
    target = rows(5, dim, seed=5)
    found = derive(c, edited(bases, change), ridge, regularizer, target).requires_grad_()
    loss = sum(((found @ change.matrix().T - c) @ base.T).square().sum() for base in bases)
    own = sum(((found - c) @ change.matrix().T @ base.T).square().sum() for base in bases)
    pulls = {
        "zero": [found.square().sum()],
        "standard": [(found - target).square().sum()],
        "1st": [own],
        "2nd": [(found - c).square().sum()],
        "both": [own, (found - c).square().sum()],
    }
    loss = loss + ridge * sum(pulls[regularizer])
    (gradient,) = torch.autograd.grad(loss, found)
    assert gradient.norm() < 1e-10 * weight_gram(bases).norm()


def test_derivation_limits():
    dim = 10
    bases, c, change = [rows(30, dim), rows(25, dim, seed=1)], rows(4, dim, seed=2), random_map(10)
    torch.testing.assert_close(derive(c, edited(bases, Factors.identity(dim)), 1e-9), c)
    outputs = edited(bases, change)
    undone = torch.linalg.solve(change.matrix(), c.T).T
    torch.testing.assert_close(undo(c, change), undone)
    torch.testing.assert_close(change.of(undo(c, change)), c)
    torch.testing.assert_close(derive(c, outputs, 1e-9), undone, rtol=1e-5, atol=1e-6)
    norms = [derive(c, outputs, ridge).norm() for ridge in (1e-3, 1.0, 1e3, 1e6)]
    assert norms == sorted(norms, reverse=True)  # a larger λ gives a smaller c'
    assert norms[-1] < 1e-3 * norms[0]


def test_outputs_follow_the_edits():
    bases = [rows(h, 12, seed=h) for h in (9, 20)]
    first, second = random_map(12), random_map(12, 30)
    step = first.pushed(second)
    change, system = first.plus(step), weight_gram(bases)
    torch.testing.assert_close(change.matrix(), first.matrix() @ second.matrix())
    found = Outputs.of(system).plus(first, system).plus(step, system)
    new = [base @ change.matrix() for base in bases]
    torch.testing.assert_close(found.normal, sum(w.T @ w for w in new))
    torch.testing.assert_close(found.mixed, sum(w.T @ base for w, base in zip(new, bases, strict=True)))


def test_target_equal_to_source_changes_nothing():
    c = rows(5, 16)
    fit = solve(c, c, 0.5, preserved=Preserved.of(rows(3, 16, seed=1)))
    assert not (fit.step.left @ fit.step.right).any()
    assert fit.step.compressed().left.shape[1] == 0


def test_ridge_to_infinity_changes_nothing():
    c, g = rows(5, 16), rows(5, 16, seed=1)
    sizes = [(s.left @ s.right).norm() for s in (solve(c, g, ridge).step for ridge in (0.1, 10.0, 1e4, 1e9))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-6


def test_weight_to_infinity_reaches_the_target():
    c, g, k = rows(5, 16), rows(5, 16, seed=1), rows(20, 16, seed=2)
    fits = [solve(c, g, 0.5, weight, Preserved.of(k)) for weight in (1.0, 100.0, 1e9)]
    far = [(Factors.identity(16).plus(f.step).of(c) - g).norm() for f in fits]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-6 * far[0]
    assert fits[-1].residual < 1e-6


def test_preserved_vectors_move_less():
    c, g, k = rows(5, 16), rows(5, 16, seed=1), rows(6, 16, seed=2)
    drifts = [
        (Factors.identity(16).plus(solve(c, g, 0.5, preserved=Preserved.of(k, scale)).step).of(k) - k).norm()
        for scale in (0.0, 0.1, 1.0, 100.0)
    ]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < 0.1 * drifts[0]


def test_order_does_not_matter():
    c, g = rows(9, 16), rows(9, 16, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    one, other = (s.left @ s.right for s in (solve(c, g, 0.5).step, solve(c[order], g[order], 0.5).step))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dim", [40, 8])  # few rows, many rows
def test_equal_rows_are_merged_without_changing_the_result(dim):
    c, g, w = rows(6, dim), rows(6, dim, seed=1), rows(6, seed=2).abs() + 0.1
    again = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0, 3])
    goals = torch.cat([g, rows(3, dim, seed=3)])
    weights = torch.cat([w, rows(3, seed=4).abs() + 0.1])
    fit = solve(c[again], goals, 0.5, weights)
    assert fit.step.left.shape[1] == min(6, dim) if dim > 8 else True
    torch.testing.assert_close(Factors.identity(dim).plus(fit.step).matrix(), plain(c[again], goals, 0.5, weights))


def test_reported_residual_and_drift_are_true():
    for n, m in ((4, 5), (4, 40)):  # few rows, many rows
        c, g, k, start = rows(n, 16), rows(n, 16, seed=1), rows(m, 16, seed=2), random_map(16)
        for restore in (False, True):
            fit = solve(c, g, 0.5, 2.0, Preserved.of(k, 0.3), start, restore)
            new = start.plus(fit.step)
            residual = (new.of(c) - g).norm() / (start.of(c) - g).norm()
            drift = (new.of(k) - (k if restore else start.of(k))).norm() / k.norm()
            assert fit.residual == pytest.approx(float(residual), rel=1e-6)
            assert fit.drift == pytest.approx(float(drift), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(4, 5), (8, 8), (4, 40)])
def test_reported_condition_is_near_the_true_one(n, m):
    c, k = rows(n, 16) * torch.linspace(1, 5, n, dtype=D)[:, None], rows(m, 16, seed=2)
    fit = solve(c, rows(n, 16, seed=1), 0.5, preserved=Preserved.of(k))
    values = torch.linalg.eigvalsh(0.5 * torch.eye(16, dtype=D) + c.T @ c + k.T @ k)
    true = float(values[-1] / values[0])
    assert 0.5 * true < fit.condition <= true * (1 + 1e-9)


def test_float32_rows_are_solved_in_float64():
    """Vectors as near to each other as CLIP's paddings: differences and Gram must not be taken in float32."""
    base = 10 * rows(1, 64, dtype=torch.float32)
    c = base + 1e-3 * rows(20, 64, seed=1, dtype=torch.float32)
    g = base + 1e-3 * rows(20, 64, seed=2, dtype=torch.float32)
    fit = solve(c, g, 1e-2, preserved=Preserved.of(base))
    expected = plain(c, g, 1e-2, k=base)
    change = Factors.identity(64).plus(fit.step)
    for factors in (change, change.compressed()):
        assert (factors.matrix() - expected).norm() < 1e-8 * expected.norm()


def test_factors_compose():
    first = random_map(12)
    torch.testing.assert_close(first.of(rows(3, 12)), rows(3, 12) @ first.matrix().T)
    torch.testing.assert_close(first.compressed().matrix(), first.matrix())
    many = Factors(rows(12, 30), rows(30, 12, seed=1))
    assert many.compressed().left.shape == (12, 12)
    torch.testing.assert_close(many.compressed().matrix(), many.matrix())
    doubled = first.plus(Factors(first.left, first.right))
    assert doubled.compressed().left.shape[1] == 2  # rank, not number of columns


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("block", [7, 4096])
def test_shared_goals_give_the_same_solution(moved, block, monkeypatch):
    """Sums of rows that share a goal, instead of products of all rows; with and without a start."""
    monkeypatch.setattr("efface.methods.closed_form.matrices.BLOCK", block)
    c, table, k, w = rows(60, 12), rows(3, 12, seed=1), rows(30, 12, seed=2), rows(60, seed=3).abs() + 0.1
    which = torch.arange(60) % 3
    start = random_map(12) if moved else None
    pairs = Pairs(c, table, w, start, which)
    monkeypatch.setattr(Pairs, "shift", lambda *_: pytest.fail("went through all rows"))
    pull, length = pairs.pull(gram(c, w))
    fit = solve(c, table, 0.5, w, Preserved.of(k, 0.7), start, moved, which)
    monkeypatch.undo()
    plainly, size = Pairs(c, table[which], w, start).pull(gram(c, w))
    torch.testing.assert_close(pull, plainly)
    assert length == pytest.approx(size)
    expected = solve(c, table[which], 0.5, w, Preserved.of(k, 0.7), start, moved)
    torch.testing.assert_close(fit.step.left @ fit.step.right, expected.step.left @ expected.step.right)
    assert fit.residual == pytest.approx(expected.residual)
    few = solve(c[:4], table, 0.5, w[:4], None, start, moved, which[:4])  # by rows
    same = solve(c[:4], table[which[:4]], 0.5, w[:4], None, start, moved)
    torch.testing.assert_close(few.step.left @ few.step.right, same.step.left @ same.step.right)


def test_joined_pairs_store_shared_goals_once():
    target, other = rows(6, 4), rows(6, 4, seed=1)
    pairs = [(rows(5, 4, seed=2), target[1:]), (rows(4, 4, seed=3), target[2:]), (rows(5, 4, seed=4), target[1:])]
    found = joined([*pairs, (rows(5, 4, seed=5), other[1:])])
    assert found.which is not None
    assert len(found.goals) == 14
    assert torch.equal(found.goals[found.which], torch.cat([target[1:], target[2:], target[1:], other[1:]]))
    assert torch.equal(found.rows[9:14], pairs[2][0])
    assert joined(pairs[:2]).which is None  # nothing is shared
    short = joined(
        [(rows(2, 4), target[:2]), (rows(3, 4), target[:3]), (rows(3, 4), target[:3])]
    )  # one start, two lengths
    assert short.which is not None
    assert torch.equal(short.goals[short.which], torch.cat([target[:2], target[:3], target[:3]]))


def test_preserved_sets_are_joined_as_rows_or_as_gram_matrices():
    few, more, many = (Preserved.of(rows(n, 12, seed=n), 0.3) for n in (4, 5, 30))
    assert few.joined(more).gram is None
    for a, b in ((few, more), (few, many), (many, many)):
        torch.testing.assert_close(a.joined(b).matrix(), a.matrix() + b.matrix())
        assert not len(a.joined(b).rows) or a.joined(b).gram is None
    assert not Preserved.none(12).matrix().any()


def test_gram_of_float32_weights_is_near_the_exact_one(monkeypatch):
    monkeypatch.setattr("efface.methods.closed_form.matrices.BLOCK", 64)
    weights = [rows(height, 24, seed=height, dtype=torch.float32) for height in (40, 50, 130)]
    exact = sum(w.double().T @ w.double() for w in weights)
    error = (weight_gram(weights) - exact).norm() / exact.norm()
    assert 0 < error < 1e-6
    assert torch.equal(weight_gram(weights), weight_gram(weights).T)
    wide = weight_gram([w.double() for w in weights])
    assert (wide - exact).norm() < 1e-14 * exact.norm()


def test_gram_in_blocks_and_tiles(monkeypatch):
    monkeypatch.setattr("efface.methods.closed_form.matrices.BLOCK", 7)
    monkeypatch.setattr("efface.methods.closed_form.matrices.TILE", 5)
    c, w = rows(50, 12), rows(50, seed=1).abs()
    torch.testing.assert_close(gram(c, w), c.T @ (w[:, None] * c))
    assert torch.equal(gram(c), gram(c).T)
    few = Preserved.gather([c[:5], c[5:9]], 12, 0.3)
    assert few.gram is None
    many = Preserved.gather(iter([c[:5], c[5:20], c[20:]]), 12, 0.3)
    assert not len(many.rows)
    often = Preserved.gather(c.split(4), 12, 0.3)  # its rows leave for the Gram matrix more than once
    for kept, part in ((few, c[:9]), (many, c), (often, c)):
        torch.testing.assert_close(kept.matrix(), 0.3 * part.T @ part)
        torch.testing.assert_close(kept.rescaled(2.0).matrix(), 0.6 * part.T @ part)


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
def test_bad_ridge(ridge):
    with pytest.raises(BadInput, match="ridge must be a number above 0"):
        solve(rows(2, 4), rows(2, 4), ridge)


def test_bad_input():
    c = rows(3, 4)
    assert (
        solve(torch.full((2, 4), 3e38), torch.full((2, 4), 3e38), 1e77).residual == 0.0
    )  # finite, though the sum is not
    with pytest.raises(BadInput, match="at least one text vector"):
        solve(c[:0], c[:0], 0.5)
    with pytest.raises(BadInput, match="erase_scale"):
        solve(c, c, 0.5, 0.0)
    with pytest.raises(BadInput, match="preserve_scale"):
        Preserved.of(c, -1.0)
    with pytest.raises(BadInput, match="not finite"):
        solve(c.clone().fill_(math.nan), c, 0.5)
    with pytest.raises(BadInput, match="not finite"):
        Preserved.of(c / 0)
    with pytest.raises(BadInput, match="too small"):
        solve(c * 1e12, c, 1e-300, preserved=Preserved.of(1e12 * rows(1, 4).expand(9, 4)))
    with pytest.raises(BadInput, match="no key or value"):
        weight_gram([])
    for ridge in (0.0, -0.1, math.nan):
        with pytest.raises(BadInput, match="derive_ridge"):
            derive(c, Outputs.of(gram(c)), ridge)
    with pytest.raises(BadInput, match="needs the embeddings of the targets"):
        derive(c, Outputs.of(gram(c)), 0.1, "standard")
    with pytest.raises(BadInput, match="singular"):
        derive(c, Outputs.of(torch.zeros(4, 4, dtype=D)), 0.1, "1st")
    with pytest.raises(BadInput, match="no inverse"):
        undo(c, Factors(-torch.eye(4, dtype=D), torch.eye(4, dtype=D)))
