"""Closed-form edits of models with joint attention: the matrix that reads the text, its bias, and the pooled path."""

import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.errors import BadEdit, BadModel
from efface.methods.closed_form.stream import erase
from efface.methods.rece import RECE
from efface.methods.time import TIME
from efface.methods.uce import UCE
from efface.models.files import stream
from efface.models.model import Model
from efface.query import Query

CHURCH = Concept("church", anchor="house")
NAME = "transformer.context_embedder.weight"
POOLED = "transformer.time_text_embed.text_embedder.linear_1.weight"


def tokenizers(model: Model):
    """Return the tokenizers whose tokens the denoiser reads, in order, and whether each has a start token."""
    pipe = model.pipe
    third = getattr(pipe, "tokenizer_3", None)
    return [(pipe.tokenizer_2, False)] if third is None else [(pipe.tokenizer, True), (third, False)]


def rows(model: Model, text: str) -> list[tuple[Tensor, int]]:
    """Return, for each tokenizer, the rows of a prompt and the place of its last word (of "": of the first row)."""
    tokens, start, found = model.encode([text]).tokens[0].double(), 0, []
    for words, has_start in tokenizers(model):
        count = len(words.tokenize(text)) + has_start  # start and words
        found.append((tokens[start : start + 16], max(0, count - 1)))
        start += 16
    assert start == len(tokens)
    return found


def tails(model: Model, old: str, new: str) -> tuple[Tensor, Tensor]:
    """Pair the rows of each tokenizer from the last word on, pads included."""
    sides: tuple[list[Tensor], list[Tensor]] = [], []
    for (c, a), (g, b) in zip(rows(model, old), rows(model, new), strict=True):
        length = 16 - max(a, b)
        sides[0].append(c[a : a + length])
        sides[1].append(g[b : b + length])
    return torch.cat(sides[0]), torch.cat(sides[1])


def loss(weight: Tensor, base: Tensor, c: Tensor, goals: Tensor, k: Tensor, ridge: float, preserve: float) -> Tensor:
    """Return what UCE minimises (eq. 7 of the paper) for one matrix; goals: what `weight` should give for c."""
    kept = ((k @ weight.T - k @ base.T) ** 2).sum()
    return ((c @ weight.T - goals) ** 2).sum() + preserve * kept + ridge * ((weight - base) ** 2).sum()


def test_the_edit_is_the_optimum_over_the_rows_of_all_tokenizers(tiny_each: Model):
    edit = UCE(ridge=0.3)(tiny_each, [CHURCH, "dog"], ["guitar"])
    assert set(edit.names) == {NAME}
    base = tiny_each.weights()[NAME].detach().double()
    pairs = [tails(tiny_each, "church", "house"), tails(tiny_each, "dog", "")]
    c, g = (torch.cat(side) for side in zip(*pairs, strict=True))
    k = torch.cat([row for text in ("", "guitar") for row, _ in rows(tiny_each, text)])
    weight = (base + edit.dense(tiny_each)[NAME].double()).requires_grad_()
    (slope,) = torch.autograd.grad(loss(weight, base, c, g @ base.T, k, 0.3, 0.5), weight)
    (first,) = torch.autograd.grad(loss(base.requires_grad_(), base.detach(), c, g @ base.T, k, 0.3, 0.5), base)
    assert slope.norm() < 1e-5 * first.norm()
    assert len(c) == sum(len(side) for side, _ in pairs) > 16 * len(tokenizers(tiny_each))


def test_a_concept_that_reads_as_itself_is_not_edited_but_with_the_bias_in_the_targets_it_is(tiny_each: Model):
    edit = UCE(rows="last")(tiny_each, [Concept("church", anchor="church")])
    assert not edit.names or not edit.dense(tiny_each)[NAME].any()
    base, bias = (tiny_each.weights()[name].detach().double() for name in (NAME, NAME.replace("weight", "bias")))
    c = torch.stack([row[at] for row, at in rows(tiny_each, "church")])
    ridge = 1e-6
    goals = c @ base.T + bias  # the published edit of FLUX takes the layer's output, bias included, as its target
    weight = (goals.T @ c + ridge * base) @ torch.linalg.inv(c.T @ c + ridge * torch.eye(len(base.T)))
    moved = (c @ (weight - base).T).norm(dim=1)
    torch.testing.assert_close(moved, bias.norm().expand_as(moved), rtol=1e-3, atol=0)


def test_the_edit_equals_its_map_on_the_text(tiny_each: Model):
    edit = UCE()(tiny_each, [CHURCH])
    asked = [Query("a church", 0, 3, 1.0), Query("a church", 1, 3, 4.0)]
    with edit.applied(tiny_each) as edited, edit.as_guard().applied(tiny_each) as guarded:
        assert (edited.generate(asked) - guarded.generate(asked)).abs().max() <= 1e-5
        assert (edited.generate(asked) - tiny_each.generate(asked)).abs().max() > 1e-3


def test_only_with_the_pooled_path_does_the_concept_give_the_replacements_images(tiny_each: Model):
    options = {"ridge": 1e-9, "rows": "all", "preserve_empty": False, "templates": ("a {}",)}
    off, on = (UCE(**options, pooled=pooled)(tiny_each, [CHURCH]) for pooled in (False, True))
    assert set(off.names) == {NAME}
    assert set(on.names) == {NAME, POOLED}
    asked, wanted = [Query("a church", 0, 3, 1.0)], tiny_each.generate([Query("a house", 0, 3, 1.0)])
    far = (tiny_each.generate(asked) - wanted).abs().max()
    with off.applied(tiny_each) as half, on.applied(tiny_each) as whole:
        assert (whole.generate(asked) - wanted).abs().max() < 1e-3 * far
        assert (half.generate(asked) - wanted).abs().max() > 1e-2 * far
    assert on.meta["closed_form"]["pooled"]["residual"] < 1e-3
    with pytest.raises(BadEdit, match="only an edit of every key and value projection"):
        on.as_guard()


def test_the_pooled_path_of_sdxl_is_mapped_and_its_sizes_are_left_alone(tiny_xl: Model, tiny: Model):
    edit = UCE(ridge=1e-6, pooled=True)(tiny_xl, [CHURCH], ["guitar"])
    name = "unet.add_embedding.linear_1.weight"
    delta = edit.dense(tiny_xl)[name]
    base = tiny_xl.weights()[name]
    assert not delta[:, 48:].any()
    church, house = (tiny_xl.encode([text]).pooled[0] for text in ("church", "house"))  # pyright: ignore[reportOptionalSubscript]
    moved, wanted = (base + delta)[:, :48] @ church, base[:, :48] @ house
    assert (moved - wanted).norm() < 1e-3 * (base[:, :48] @ church - wanted).norm()
    with pytest.raises(BadModel, match="reads no pooled vector"):
        UCE(pooled=True)(tiny, [CHURCH])


@pytest.mark.parametrize("method", [UCE(), UCE(pooled=True), TIME(), RECE(epochs=2, rows="all")])
def test_a_streamed_edit_is_the_loaded_models(tiny_each: Model, folder_of, method):
    streamed = erase(method, tiny_each.name, [CHURCH], ["guitar"])
    assert streamed == method(tiny_each, [CHURCH], ["guitar"])
    model = stream.open_model(tiny_each.name)
    assert {name for name, weight in model.weights().items() if not weight.is_meta} == {NAME}


def test_an_edited_copy_differs_in_the_edited_weight_only(tiny_each: Model, tmp_path):
    edit = UCE()(tiny_each, [CHURCH])
    stream.write(edit, tiny_each.name, tmp_path / "copy")
    copy = Model.load(tmp_path / "copy").weights("")
    with edit.applied(tiny_each) as edited:
        assert [n for n, w in edited.weights("").items() if not torch.allclose(w, copy[n], atol=1e-6)] == []
    assert [n for n, w in tiny_each.weights("").items() if not torch.equal(w, copy[n])] == [NAME]


def test_what_derives_brings_back_what_was_erased(tiny_each: Model):
    edit = RECE(epochs=1, derive_ridge=0.0)(tiny_each, [CHURCH])
    derived = edit.extra["derived.0.church"]
    assert derived.shape == tiny_each.encode(["church"]).tokens.shape[1:]
    base = tiny_each.weights()[NAME]
    with UCE(ridge=0.1, preserve_scale=0.1)(tiny_each, [CHURCH]).applied(tiny_each) as first:
        got, wanted = derived @ first.weights()[NAME].T, tiny_each.encode(["church"]).tokens[0] @ base.T
        assert (got - wanted).norm() < 1e-3 * wanted.norm()


def test_without_keys_there_is_nothing_to_edit(tiny_each: Model):
    with pytest.raises(BadModel, match="has no value matrices that read the text alone"):
        TIME.preset("repo")(tiny_each, [CHURCH])
