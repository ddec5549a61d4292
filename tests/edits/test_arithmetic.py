"""Laws of the arithmetic of edits."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface.edits import arithmetic
from efface.edits.edit import Edit
from efface.edits.parts import TextMap

# The type checks of the test run look at random items of containers; nothing drawn depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

NAMES = ("unet.down_blocks.0.attn2.to_k.weight", "unet.mid_block.attn2.to_v.weight", "unet.up_blocks.1.conv.weight")
WEIGHTS = {name: torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(NAMES)}


class Bare:
    """Minimal model with named weights."""

    name = "bare"
    origin = None

    def weights(self, _prefix: str = "unet.") -> dict[str, Tensor]:
        return WEIGHTS

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(names, "")

    def edited(self, weights: Mapping[str, Tensor], guards: tuple[Any, ...] = (), id: str = "") -> "Bare":
        return self


def tensors(*shape: int) -> st.SearchStrategy[Tensor]:
    return st.integers(0, 2**31).map(lambda seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


@st.composite
def text_maps(draw: st.DrawFn) -> TextMap:
    names = tuple(draw(st.permutations(NAMES)))[: draw(st.integers(1, 3))]
    rank = draw(st.integers(1, 3))
    return TextMap(names, draw(tensors(4, rank)), draw(tensors(rank, 4)))


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    delta = {name: draw(tensors(5, 4)) for name in draw(st.sets(st.sampled_from(NAMES)))}
    return Edit(delta=delta, maps=tuple(draw(st.lists(text_maps(), max_size=2))))


scales = st.floats(-4, 4, width=32).filter(lambda s: s == 0 or abs(s) > 1e-3)


def dense(edit: Edit) -> dict[str, Tensor]:
    return edit.dense(Bare())  # pyright: ignore[reportArgumentType]


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-4) -> bool:
    return all(torch.allclose(a.get(name, ZERO), b.get(name, ZERO), atol=tolerance) for name in NAMES)


ZERO = torch.zeros(5, 4)


@given(edits(), edits())
def test_addition_is_commutative_bit_for_bit(a: Edit, b: Edit):
    assert a + b == b + a
    left, right = dense(a + b), dense(b + a)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_addition_commutes_when_one_side_holds_maps_that_merge():
    right = torch.randn(1, 4, generator=torch.Generator().manual_seed(9))
    lefts = [torch.randn(4, 1, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    maps = [TextMap(NAMES[:1], left, right) for left in lefts]
    for a, b in (([0], [0, 1]), ([0, 1, 2], [3]), ([0, 1, 2], [2, 1, 3]), ([3, 2, 1, 0], [0, 1, 2, 3])):
        one, two = (Edit(maps=tuple(maps[i] for i in part)) for part in (a, b))
        assert one + two == two + one
        assert one - one == two - two == Edit()


@given(edits(), edits(), edits())
def test_addition_is_associative(a: Edit, b: Edit, c: Edit):
    assert close(dense((a + b) + c), dense(a + (b + c)))


@given(edits(), edits(), scales)
def test_scaling_distributes_over_addition(a: Edit, b: Edit, s: float):
    assert close(dense(s * (a + b)), dense(s * a + s * b), 1e-3)


@given(edits(), scales, scales)
def test_scales_add_and_multiply(a: Edit, s: float, t: float):
    assert close(dense(s * a + t * a), dense((s + t) * a), 1e-3)
    assert close(dense(s * (t * a)), dense((s * t) * a), 1e-3)


@given(edits())
def test_an_edit_less_itself_is_nothing(a: Edit):
    assert a - a == Edit()
    assert a + (-a) == Edit()
    assert 0 * a == Edit()


@given(edits(), edits())
def test_subtraction_undoes_addition(a: Edit, b: Edit):
    assert close(dense(a + b - b), dense(a))
    assert close(dense(-(a - b)), dense(b - a))


@given(edits())
def test_one_and_the_empty_edit_are_neutral(a: Edit):
    assert 1 * a is a
    assert a + Edit() == Edit() + a
    assert close(dense(a + Edit()), dense(a))


@given(edits(), st.sampled_from(["down", "mid", "up", "attn2", "*.conv.*"]))
def test_what_is_pruned_and_what_is_left_are_the_whole(a: Edit, pattern: str):
    if any(arithmetic.matches(name, pattern) for name in a.names):
        kept, left = a.prune(only=pattern), a.prune(without=pattern)
        assert set(kept.names) | set(left.names) == set(a.names)
        assert not set(kept.names) & set(left.names)
        assert close(dense(kept + left), dense(a))


@given(text_maps(), scales)
def test_maps_with_one_right_factor_are_merged(a: TextMap, s: float):
    edit = Edit(maps=(a,))
    assert len((edit + s * edit).maps) <= 1
    assert close(dense(edit + s * edit), dense((1 + s) * edit), 1e-3)


def test_sums_of_half_precision_deltas_are_wide():
    half = Edit(delta={NAMES[0]: torch.full((5, 4), 1.0, dtype=torch.bfloat16)})
    small = Edit(delta={NAMES[0]: torch.full((5, 4), 2**-12, dtype=torch.bfloat16)})
    assert (half + small).delta[NAMES[0]][0, 0] == 1 + 2**-12


def test_matches():
    name = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert all(arithmetic.matches(name, p) for p in ("up", "attn2", "to_k", "up_blocks.1", "*to_k*", name))
    assert not any(
        arithmetic.matches(name, p) for p in ("down", "mid", "attn1", "attn", "up_blocks.0", "to_k"[:3], "*to_v*")
    )
