from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.edits.parts import TextMap
from efface.errors import BadEdit, BadInput
from efface.method import InferenceMethod
from efface.methods.negative import NegativePrompt
from efface.models.model import Model
from efface.query import Query

QUERIES = [Query("a church", 0, 3), Query("a dog", 1, 3)]
GUARD = Guard(NegativePrompt(), (Concept("church"),))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_edit(model: Model, seed: int = 0, size: float = 0.05) -> Edit:
    """Make an edit of two dense deltas with its base model on record."""
    names = [model.text_weights()[0], "unet.conv_out.bias"]
    weights = model.weights()
    delta = {name: size * random(seed + i, *weights[name].shape) for i, name in enumerate(names)}
    return Edit(delta=delta, meta={"base": model.base(names)})


def map_edit(model: Model, seed: int = 0, rank: int = 2, size: float = 0.1) -> Edit:
    """Make an edit of one text map on all keys and values with its base model on record."""
    names = tuple(model.text_weights())
    text_map = TextMap(names, size * random(seed, model.width, rank), random(seed + 1, rank, model.width))
    return Edit(maps=(text_map,), meta={"base": model.base(names)})


def state(model: Model) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.weights("").items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_applied_edits_the_yielded_model_and_leaves_the_other(tiny: Model):
    edit, before, images = dense_edit(tiny), state(tiny), tiny.generate(QUERIES)
    with edit.applied(tiny) as edited:
        for name, delta in edit.delta.items():
            assert torch.equal(edited.weights()[name], before[name] + delta)
        unchanged = set(before) - set(edit.delta)
        assert all(edited.weights("")[name] is tiny.weights("")[name] for name in unchanged)
        assert (edited.generate(QUERIES) - images).abs().max() > 1e-3
        assert torch.equal(tiny.generate(QUERIES), images)  # both at once
    assert same(state(tiny), before)
    assert torch.equal(tiny.generate(QUERIES), images)


def test_applied_leaves_the_model_after_an_exception(tiny: Model):
    before = state(tiny)
    with pytest.raises(ZeroDivisionError), dense_edit(tiny).applied(tiny) as edited:
        edited.weights()["unet.conv_out.bias"].add_(1 / 0)
    assert same(state(tiny), before)


@pytest.mark.parametrize("make", [dense_edit, map_edit])
def test_nested_edits_add_up(tiny: Model, make):
    a, b, before = make(tiny, 0), make(tiny, 10), state(tiny)
    with a.applied(tiny) as once:
        between = state(once)
        with b.applied(once) as twice, (a + b).applied(tiny) as summed:
            for name in a.names:
                assert torch.allclose(twice.weights()[name], summed.weights()[name], atol=1e-6)
        assert same(state(once), between)
    assert same(state(tiny), before)


def test_an_edit_made_on_an_edited_model_is_relative_to_it(tiny: Model):
    first = map_edit(tiny)
    with first.applied(tiny) as once:
        second = map_edit(once, 10)
        with second.applied(once) as twice:
            for name in second.names:
                left, right = second.maps[0].left, second.maps[0].right
                weight = once.weights()[name]
                assert torch.allclose(twice.weights()[name], weight + weight @ left @ right, atol=1e-6)
    with pytest.raises(BadEdit, match="differ"):
        second.check(tiny)


@pytest.mark.parametrize("make", [dense_edit, map_edit])
def test_strength_zero_is_the_base_model_bit_for_bit(tiny: Model, make):
    edit = make(tiny)
    for nothing in (0 * edit, edit - edit, edit + (-edit), edit.prune(only="*.attn2.to_k.*") * 0.0):
        assert nothing == Edit()
        with nothing.applied(tiny) as edited:
            assert same(state(edited), state(tiny))
            assert torch.equal(edited.generate(QUERIES), tiny.generate(QUERIES))


def test_a_text_map_is_its_dense_deltas(tiny: Model):
    edit = map_edit(tiny)
    dense = Edit(delta=edit.dense(tiny), meta=edit.meta)
    for name, delta in dense.delta.items():
        weight = tiny.weights()[name]
        assert torch.allclose(delta, weight @ (edit.maps[0].left @ edit.maps[0].right), atol=1e-6)
    with edit.applied(tiny) as a, dense.applied(tiny) as b:
        assert torch.equal(a.generate(QUERIES), b.generate(QUERIES))


def test_dense_of_a_mixture_is_the_sum(tiny: Model):
    a, b = dense_edit(tiny), map_edit(tiny)
    mixed, left, right = (a + b).dense(tiny), a.dense(tiny), b.dense(tiny)
    for name in mixed:
        assert torch.allclose(mixed[name], left.get(name, 0) + right.get(name, torch.zeros(())), atol=1e-6)


def test_a_text_map_as_a_guard_on_embeddings_generates_the_same_images(tiny: Model, tiny2: Model):
    for model in (tiny, tiny2):
        edit = map_edit(model) + map_edit(model, 20, rank=3)
        guard = edit.as_guard()
        assert not guard.names
        with edit.applied(model) as by_weights, guard.applied(model) as by_text:
            assert same(state(by_text), state(model))
            images = by_weights.generate(QUERIES)
            assert (images - by_text.generate(QUERIES)).abs().max() < 1e-5
            assert (images - model.generate(QUERIES)).abs().max() > 1e-3
            x, c, null = random(0, 2, 4, 8, 8), model.encode(["a church", "a dog"]), model.encode([""])
            for ours, theirs in zip(by_weights.denoise(x, 5, c, null), by_text.denoise(x, 5, c, null), strict=True):
                assert torch.allclose(ours, theirs, atol=1e-5)


def test_only_an_edit_of_all_keys_and_values_can_be_a_guard(tiny: Model):
    with pytest.raises(BadEdit, match="text maps alone"):
        (map_edit(tiny) + dense_edit(tiny)).as_guard()
    with pytest.raises(BadEdit, match="text maps alone"):
        Edit().as_guard()
    with pytest.raises(BadEdit, match="every key and value"):
        map_edit(tiny).prune(without="to_k").as_guard()
    with pytest.raises(BadEdit, match="every key and value"):
        (map_edit(tiny) + map_edit(tiny, 5).prune(only="mid")).as_guard()


def test_another_architecture_is_always_refused(tiny: Model, tiny2: Model):
    bad = [
        Edit(delta={"unet.nothing.weight": torch.zeros(2)}),
        Edit(delta={"unet.conv_out.bias": torch.zeros(5)}),
        Edit(maps=(TextMap(tuple(tiny.text_weights()), random(0, 31, 1), random(0, 1, 31)),)),
        Edit(maps=(TextMap(("unet.conv_in.weight",), random(0, 32, 1), random(0, 1, 32)),)),
        dense_edit(tiny2),
    ]
    for edit in bad:
        for any_base in (False, True):
            with pytest.raises(BadEdit, match="another architecture"):
                edit.check(tiny, any_base)
        with pytest.raises(BadEdit, match="another architecture"), edit.applied(tiny, any_base=True):
            pass
        with pytest.raises(BadEdit, match="another architecture"):
            edit.dense(tiny)


def test_another_base_is_refused_unless_told(tiny: Model):
    edit = dense_edit(tiny)
    with Edit(delta={edit.names[0]: torch.full_like(edit.delta[edit.names[0]], 0.1)}).applied(tiny) as near:
        other = Model(near.pipe, name="other")  # a model in its own right: not this one under an edit
    with pytest.raises(BadEdit, match=r"made on .*tiny and 1 of its 2 weights differ in other .*any_base"):
        edit.check(other)
    edit.check(other, any_base=True)
    with edit.applied(other, any_base=True) as edited:
        weight = other.weights()[edit.names[0]]
        assert torch.equal(edited.weights()[edit.names[0]], weight + edit.delta[edit.names[0]])


def test_an_edit_fits_the_same_model_in_half_precision(tiny: Model, folder: Path):
    half = Model.load(folder, dtype=torch.bfloat16)
    edit = map_edit(tiny)
    with edit.applied(half) as edited:
        weight = edited.weights()[edit.names[0]]
        assert weight.dtype == torch.bfloat16
        with edit.applied(tiny) as full:
            assert torch.allclose(weight.float(), full.weights()[edit.names[0]], atol=0.02)


def test_guards_come_with_the_edit(tiny: Model):
    edit = dense_edit(tiny) + Edit(guards=(GUARD,))
    with edit.applied(tiny) as edited:
        assert edited.guards == (GUARD,)
        assert edited.id != tiny.id
        with Edit(guards=(GUARD,)).applied(edited) as twice:
            assert twice.guards == (GUARD, GUARD)


def test_guards_are_not_scaled(tiny: Model):
    edit = dense_edit(tiny) + Edit(guards=(GUARD,))
    for scale in (0.5, 2, -1.0):
        with pytest.raises(BadEdit, match="cannot be scaled"):
            scale * edit
    with pytest.raises(BadEdit, match="cannot be scaled"):
        _ = -edit
    assert (1 * edit).guards == (GUARD,)
    assert (0 * edit) == Edit()


def test_guards_can_be_subtracted(tiny: Model):
    edit, guard = dense_edit(tiny), Edit(guards=(GUARD,))
    assert (edit + guard - guard) == edit
    assert (edit + guard) - (edit + guard) == Edit()
    assert (guard + guard).guards == (GUARD,)
    with pytest.raises(BadEdit, match="does not have"):
        edit - guard


def test_prune_by_block_part_and_glob(tiny: Model):
    names = {name: torch.ones(1) for name in tiny.weights() if "attn" in name or "conv" in name}
    edit = Edit(delta=names)
    assert all("up_blocks" in name for name in edit.prune(only="up").names)
    assert all("up_blocks" not in name for name in edit.prune(without=["up"]).names)
    assert {n.split(".")[1] for n in edit.prune(only=("down", "mid")).names} == {"down_blocks", "mid_block"}
    assert all(".attn2." in name for name in edit.prune(only="attn2", without="attn1").names)
    assert edit.prune(only="unet.conv_in.*").names == ("unet.conv_in.bias", "unet.conv_in.weight")
    assert edit.prune(only="to_k").names == tuple(n for n in edit.names if ".to_k." in n)
    assert edit.prune().names == edit.names
    with pytest.raises(BadInput, match="'nowhere' matches none"):
        edit.prune(without="nowhere")


def test_pruning_a_text_map_removes_names(tiny: Model):
    edit = map_edit(tiny)
    values = edit.prune(without="to_k")
    assert len(values.names) == 4
    assert values + edit.prune(only="to_k") != Edit()
    with values.applied(tiny) as edited, edit.applied(tiny) as whole:
        for name in edit.names:
            expected = whole if name in values.names else tiny
            assert torch.equal(edited.weights()[name], expected.weights()[name])


def test_the_id_is_of_what_the_edit_does(tiny: Model):
    edit = dense_edit(tiny) + map_edit(tiny)
    again = Edit(dict(edit.delta), edit.maps, (), {"created": "later"}, {"note": torch.ones(1)})
    assert again.id == edit.id
    assert again == edit
    assert hash(again) == hash(edit)
    ids = {edit.id, (2 * edit).id, (-edit).id, dense_edit(tiny).id, (edit + Edit(guards=(GUARD,))).id, Edit().id}
    assert len(ids) == 6
    assert edit != "edit"


def test_the_provenance_of_combinations_names_the_parts(tiny: Model):
    a, b = dense_edit(tiny), map_edit(tiny)
    combined = 0.5 * (a + b)
    assert combined.meta["op"] == "*"
    assert combined.meta["scale"] == 0.5
    assert combined.meta["parts"][0]["op"] == "+"
    assert len(combined.meta["parts"][0]["parts"]) == 2
    assert set(combined.meta["base"]["hashes"]) == set(combined.names)
    assert (2 * combined).meta["scale"] == 1.0
    combined.check(tiny)
    assert a.prune(only="attn2").meta["op"] == "prune"


def test_edits_of_different_models_do_not_add(tiny: Model):
    edit = map_edit(tiny)
    with edit.applied(tiny) as other:
        foreign = map_edit(other)
    with pytest.raises(BadEdit, match="different base models"):
        edit + foreign
    with pytest.raises(BadEdit, match="different architectures"):
        Edit(delta={"a": torch.zeros(2)}) + Edit(delta={"a": torch.zeros(3)})


def test_a_scale_must_be_finite(tiny: Model):
    with pytest.raises(BadInput, match="finite"):
        dense_edit(tiny) * float("nan")


def test_it_prints_what_it_erases(tiny: Model):
    edit = NegativePrompt()(tiny, ["church", "dog"])
    assert repr(edit).startswith("Edit(negative: church, dog; 0 weights, 1 guards, ")


def test_an_inference_method_gives_a_guard(tiny: Model):
    edit = NegativePrompt()(tiny, "church")
    assert edit.guards == (GUARD,)
    assert isinstance(edit.guards[0].method, InferenceMethod)
