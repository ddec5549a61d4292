"""Evaluation: the groups, the counts behind every number, and the same numbers by an independent way."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from efface import Concept, Edit, Query
from efface.errors import BadInput, BadModel, UnknownName
from efface.evaluation.evaluate import evaluate, images
from efface.evaluation.prompts import Plan, hints
from efface.evaluation.stats import paired_difference, wilson
from efface.evaluation.store import Store
from efface.models.model import Model

OBJECTS = ("church", "house", "castle", "guitar", "dog", "wolf", "fox")
STYLES = ("plain", "neon", "sketch", "pixel")
WORDS = ("building", "cross", "religion", "red", "moon", "blue")
TABLE = {name: Concept(name, related=("house", "castle"), keywords=WORDS) for name in OBJECTS[:1]}
TABLE |= {name: Concept(name) for name in OBJECTS[1:]}
TABLE |= {name: Concept(name, kind="style") for name in STYLES[1:]}
PLAN = Plan(seeds=(0, 1), near=(0, 1), focus=(0, 1, 2), hints=(0,), styled=(0,))


class Reader:
    """A judge that reads what `Painter` has written into the first pixels."""

    classes, styles, profile = OBJECTS, STYLES, {"evaluator": "reader", "sha256": "0", "input": 16}

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return one_hot(images[:, 0, 0, 0], len(OBJECTS))

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        return one_hot(images[:, 1, 0, 0], len(STYLES))


def one_hot(values: Tensor, count: int) -> Tensor:
    """Give the named class most, and of the others the later ones more, so that there are no ties."""
    hot = torch.nn.functional.one_hot((values * 100).round().long(), count)
    return hot + torch.arange(count) * 1e-3


class Painter(Store):
    """A store whose images say what their prompt asks for, but for what an edit turns into something else."""

    swaps: dict[str, str]

    def images(self, model: Model, edit_id: str, queries: Sequence[Query], batch: int = 32) -> Tensor:
        out = torch.zeros(len(queries), 3, 16, 16)
        for image, query in zip(out, queries, strict=True):
            named = [w for w in query.prompt.split() if w in OBJECTS]
            thing = named[0] if named else "church" if set(query.prompt.split()) & set(WORDS) else "dog"
            style = next((w for w in query.prompt.split() if w in STYLES), "plain")
            if edit_id:
                thing = thing if query.seed == 0 and thing in self.half else self.swaps.get(thing, thing)
                style = self.swaps.get(style, style)
            image[0, 0, 0], image[1, 0, 0] = OBJECTS.index(thing) / 100, STYLES.index(style) / 100
        return out

    @property
    def half(self) -> tuple[str, ...]:
        return ("guitar",)


def paint(tmp_path: Path, swaps: dict[str, str]) -> Painter:
    painter = Painter(tmp_path)
    object.__setattr__(painter, "swaps", swaps)
    return painter


def an_edit(model: Model, keep: Sequence[str] = ()) -> Edit:
    name = model.text_weights()[0]
    meta = {"method": "test", "keep": [{"name": k} for k in keep], "erase": [{"name": "church"}]}
    return Edit({name: torch.full_like(model.weights()[name], 0.3)}, meta=meta)


def test_object_groups(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"church": "house", "guitar": "dog", "wolf": "fox"})
    found = evaluate(tiny, an_edit(tiny, ["dog", "wolf"]), TABLE["church"], TABLE, Reader(), PLAN, store)
    groups = found["groups"]
    assert found["concept"] == "church"
    assert groups["target"]["before"]["top1"] == 1
    assert groups["target"]["after"] == {
        "top1": 0, "top5": 0, "n": 3, "ci95": [round(e, 6) for e in wilson(0, 3)],
        "top5_ci95": [round(e, 6) for e in wilson(0, 3)],
    }  # fmt: skip
    assert groups["related"]["after"]["n"] == 2 * 2
    assert groups["related"]["after"]["top1"] == 1
    assert groups["objects"]["after"]["n"] == 4 * 2
    assert groups["objects"]["after"]["top1"] == (8 - 1 - 2) / 8  # guitar: one of two; wolf: both
    assert groups["styles"]["after"]["n"] == 3 * 2
    assert groups["unrelated"]["after"]["n"] == 8 + 6
    assert groups["unprotected"]["after"]["n"] == 14 - 4
    assert groups["implicit"]["before"]["n"] == len(WORDS)
    assert groups["implicit"]["before"]["top1"] == 1
    assert groups["styled"]["after"]["top1"] == 0
    assert found["per_concept"]["guitar"]["after"]["top1"] == 0.5
    assert found["per_concept"]["wolf"] | {"kept": True, "group": "unrelated"} == found["per_concept"]["wolf"]
    assert found["profile"]["evaluator"] == "reader"


def test_a_scaled_pruned_or_combined_edit_keeps_what_its_parts_kept(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {})
    one, two = an_edit(tiny, ["dog"]), an_edit(tiny, ["wolf"])
    for edit in (0.5 * (one + two), (one + two).prune(keep="attn2"), one - two):
        found = evaluate(tiny, edit, TABLE["church"], TABLE, Reader(), PLAN, store)
        assert {name for name, value in found["per_concept"].items() if value["kept"]} == {"dog", "wolf"}


def test_change_is_paired(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"guitar": "dog"})
    group = evaluate(tiny, an_edit(tiny), TABLE["church"], TABLE, Reader(), PLAN, store)["groups"]["objects"]
    assert group["change"]["top1"] == pytest.approx(-1 / 8)
    low, high = group["change"]["ci95"]
    assert (low, high) == pytest.approx(paired_difference([True] * 8, [True] * 7 + [False]), abs=1e-6)


def test_style_groups(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"neon": "plain"})
    groups = evaluate(tiny, an_edit(tiny), TABLE["neon"], TABLE, Reader(), PLAN, store)["groups"]
    assert groups["target"]["before"]["top1"] == 1
    assert groups["target"]["after"]["top1"] == 0
    assert groups["styles"]["after"]["top1"] == 1
    assert groups["objects"]["after"]["top1"] == 1
    assert groups["content"]["after"]["top1"] == 1
    assert groups["implicit"]["before"]["n"] == 0
    assert groups["implicit"]["before"]["ci95"] == [0, 1]


def test_several_targets_are_pooled_and_are_not_each_others_relatives(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"church": "dog"})
    targets = [TABLE["church"], TABLE["house"]]
    found = evaluate(tiny, an_edit(tiny), targets, TABLE, Reader(), PLAN, store)
    assert found["concept"] == "church, house"
    assert found["groups"]["target"]["after"]["top1"] == 0.5
    assert found["per_concept"]["house"]["group"] == "target"


class Random:
    """A judge that is a fixed random linear map: its verdicts depend on every pixel."""

    classes, styles, profile = OBJECTS, STYLES, {"evaluator": "random"}

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        maps = torch.randn(3 * 16 * 16, len(OBJECTS), generator=torch.Generator().manual_seed(0))
        return ((images - 0.5).flatten(1) @ maps).softmax(dim=1)

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        return self.objects(images)[:, : len(STYLES)]


def test_numbers_equal_an_independent_count(tiny: Model, tmp_path: Path) -> None:
    """Draw and count by hand: images of the edited model, in 8 bits, judged one prompt at a time."""
    plan = Plan(seeds=(0, 1), near=(0, 1), focus=(0, 1, 2), hints=(5,), styled=(0,), steps=2, guidance=4.0, batch=3)
    edit = an_edit(tiny)
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path))
    queries = [Query("a picture of a dog", seed, steps=2, guidance=4.0) for seed in (0, 1)]
    for when, change in (("before", Edit()), ("after", edit)):
        with change.applied(tiny) as model:
            drawn = (model.generate(queries) * 255).round() / 255
        seen = Random().objects(drawn).argsort(dim=1, descending=True)
        mine = found["per_concept"]["dog"][when]
        assert mine["top1"] == (seen[:, 0] == OBJECTS.index("dog")).float().mean()
        assert mine["top5"] == (seen[:, :5] == OBJECTS.index("dog")).any(1).float().mean()


def test_second_evaluation_draws_nothing(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(seeds=(0,), near=(0,), focus=(0,), hints=(), styled=(), steps=1)
    edit = an_edit(tiny)
    first = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path))
    monkeypatch.setattr(Model, "generate", None)
    assert evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path)) == first


def test_images_without_an_edit_are_the_models(tiny: Model, tmp_path: Path) -> None:
    queries = [Query("a church", 3, steps=2)]
    drawn = images(tiny, None, queries, store=Store(tmp_path))
    assert torch.equal(drawn, (tiny.generate(queries) * 255).round() / 255)


def test_what_cannot_be_judged_is_refused(tiny: Model, tmp_path: Path) -> None:
    edit, store = an_edit(tiny), paint(tmp_path, {})
    with pytest.raises(BadModel, match=r"concepts\.json"):
        evaluate(tiny, edit, Concept("church"), {}, Reader(), PLAN, store)
    with pytest.raises(UnknownName, match="church"):
        evaluate(tiny, edit, Concept("churhc"), TABLE, Reader(), PLAN, store)
    with pytest.raises(BadInput, match="name the erased concept"):
        evaluate(tiny, edit, [], TABLE, Reader(), PLAN, store)
    with pytest.raises(BadInput, match="at least one seed"):
        Plan(seeds=())


def test_hints_never_hold_a_pair_that_is_far_apart() -> None:
    phrases = hints(WORDS)
    assert len(phrases) == len(set(phrases)) == 6
    assert all(len(phrase.split()) == 3 for phrase in phrases)
    for i in range(3):
        assert not any({WORDS[i], WORDS[i + 3]} <= set(phrase.split()) for phrase in phrases)
    assert hints(()) == []
    assert hints(("place of worship", "cross")) == ["place of worship", "cross"]


def test_held_out_phrases_are_a_group_of_their_own() -> None:
    cases = Plan().cases([TABLE["church"]], TABLE, {"church": ["building red"]})
    held = [case for case in cases if case.group == "implicit_held_out"]
    assert [case.prompt for case in held] == ["building red"]


def test_profile_names_all_that_numbers_depend_on(tiny: Model, tmp_path: Path) -> None:
    profile: Any = evaluate(tiny, an_edit(tiny), TABLE["church"], TABLE, Reader(), PLAN, paint(tmp_path, {}))["profile"]
    wanted = {"evaluator", "sha256", "seeds", "prompts", "steps", "guidance", "solver", "model_id", "versions"}
    assert wanted <= set(profile)
    assert SimpleNamespace(**profile).solver == "PNDMScheduler"
