"""Evaluation: the groups, the counts behind every number, and the same numbers by an independent way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from efface import Concept, Edit, Query
from efface.edits.provenance import versions
from efface.errors import BadInput, BadModel, UnknownName
from efface.evaluation.evaluate import evaluate, images
from efface.evaluation.prompts import GROUPS, Plan, implicit_prompts
from efface.evaluation.record import Record
from efface.evaluation.stats import paired_difference, wilson
from efface.evaluation.store import Store
from efface.judge import Judge, Profile
from efface.metrics.clip_score import ClipScore
from efface.metrics.ssim import SSIM
from efface.models.model import Model

OBJECTS = ("church", "house", "castle", "guitar", "dog", "wolf", "fox")
STYLES = ("plain", "neon", "sketch", "pixel")
WORDS = ("building", "cross", "religion", "red", "moon", "blue")
TABLE = {name: Concept(name, related=("house", "castle"), keywords=WORDS) for name in OBJECTS[:1]}
TABLE |= {name: Concept(name) for name in OBJECTS[1:]}
TABLE |= {name: Concept(name, kind="style") for name in STYLES[1:]}
PLAN = Plan(seeds=(0, 1), related_seeds=(0, 1), target_seeds=(0, 1, 2), implicit_seeds=(0,), styled_seeds=(0,))


class Reader(Judge):
    """A judge that reads what `Painter` has written into the first pixels."""

    classes, styles = OBJECTS, STYLES
    profile = Profile(evaluator="reader", sha256={"all": "0"}, input=16)

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


def an_edit(model: Model, preserve: Sequence[str] = (), key: str = "preserve") -> Edit:
    name = model.text_weights()[0]
    meta = {"method": "test", key: [{"name": name} for name in preserve], "erase": [{"name": "church"}]}
    return Edit({name: torch.full_like(model.weights()[name], 0.3)}, meta=meta)


def test_object_groups(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"church": "house", "guitar": "dog", "wolf": "fox"})
    found = evaluate(tiny, an_edit(tiny, ["dog", "wolf"]), TABLE["church"], TABLE, Reader(), PLAN, store)
    groups = found.summaries
    assert found.concept == "church"
    assert groups["target"].before.value == 1
    assert (groups["target"].after.hits, groups["target"].after5.hits, groups["target"].after.n) == (0, 0, 3)
    assert groups["target"].after.interval == groups["target"].after5.interval == wilson(0, 3)
    assert groups["related"].after.n == 2 * 2
    assert groups["related"].after.value == 1
    assert groups["objects"].after.n == 4 * 2
    assert groups["objects"].after.value == (8 - 1 - 2) / 8  # guitar: one of two; wolf: both
    assert groups["styles"].after.n == 3 * 2
    assert groups["unrelated"].after.n == 8 + 6
    assert groups["unpreserved"].after.n == 14 - 4
    assert groups["implicit"].before.n == len(WORDS)
    assert groups["implicit"].before.value == 1
    assert groups["styled"].after.value == 0
    assert list(groups) == [group.name for group in GROUPS if group.name in groups]
    assert found.singles["guitar"].after.value == 0.5
    assert found.singles["wolf"].preserved
    assert found.singles["wolf"].group == "unrelated"
    assert found.evaluator.evaluator == "reader"


def test_rows_are_images(tiny: Model, tmp_path: Path) -> None:
    """One row per image by either model: what it was asked, what was seen, and where it is in the store."""
    edit, store = an_edit(tiny), Store(tmp_path)
    plan = Plan(seeds=(0,), related_seeds=(0,), target_seeds=(0, 1), implicit_seeds=(), styled_seeds=(), steps=1)
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, store)
    assert len(found.rows) == 2 * (2 + 2 + 4 + 3)
    rows = [row for row in found.rows if row.label == "church"]
    assert [(row.made_by, row.query.seed) for row in rows] == [
        ("original", 0), ("original", 1), ("edited", 0), ("edited", 1),
    ]  # fmt: skip
    for row in rows:
        query = Query(row.query.prompt, row.query.seed, row.query.steps, row.query.guidance, solver=row.query.solver)
        image = store.image(row.image)
        assert image is not None
        with edit.applied(tiny) as edited:
            made = images(edited if row.made_by == "edited" else tiny, None, [query], store=Store(tmp_path / "other"))[
                0
            ]
        assert torch.equal(image, made)
        ranked = Random().objects(image[None])[0].argsort(descending=True).tolist()
        assert row.seen == OBJECTS[ranked[0]]
        assert (row.top1, row.top5) == (0 in ranked[:1], 0 in ranked[:5])  # the church is class 0
    assert store.image("0" * 64) is None


def test_scores_of_metrics(tiny: Model, tmp_path: Path) -> None:
    """The original is like itself, the edited image less so; a judge without a CLIP gives no CLIP score."""
    name, store = "unet.conv_out.weight", Store(tmp_path)
    noise = torch.randn(tiny.weights()[name].shape, generator=torch.Generator().manual_seed(0))
    edit = Edit({name: 0.2 * noise}, meta={"method": "test", "erase": [{"name": "church"}]})
    plan = Plan(seeds=(0,), related_seeds=(0,), target_seeds=(0, 1), implicit_seeds=(), styled_seeds=(), steps=2)
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, store)
    likeness = {maker: [r.scores["ssim"] for r in found.rows if r.made_by == maker] for maker in ("original", "edited")}
    assert likeness["original"] == pytest.approx([1.0] * 11, abs=1e-5)
    assert max(likeness["edited"]) < 0.9999
    mean, target = found.mean("ssim", "target"), torch.tensor(likeness["edited"][:2])
    assert mean is not None
    assert (mean.value, mean.n) == (pytest.approx(float(target.mean()), abs=1e-6), 2)
    assert mean.error == pytest.approx(float(target.std()) / 2**0.5, abs=1e-6)
    assert found.mean("clip_score", "target") is None
    share = tiny.weights()[name].numel() / sum(p.numel() for p in tiny.weights().values())
    assert found.whole == {"changed_weights": pytest.approx(share, abs=1e-6)}
    only = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, store, metrics=[SSIM()])
    assert only.whole == {}
    assert only.rows == found.rows
    with pytest.raises(BadInput, match="ClipScore needs a judge with a CLIP"):
        evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, store, metrics=[ClipScore()])


def test_a_scaled_pruned_or_combined_edit_preserves_what_its_parts_did(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {})
    one, two = an_edit(tiny, ["dog"]), an_edit(tiny, ["wolf"])
    for edit in (0.5 * (one + two), (one + two).prune(only="attn2"), one - two):
        found = evaluate(tiny, edit, TABLE["church"], TABLE, Reader(), PLAN, store)
        assert set(found.edit.preserved) == {"dog", "wolf"}
        assert {name for name, value in found.singles.items() if value.preserved} == {"dog", "wolf"}


def test_edit_files_that_say_keep_still_load_prune_and_evaluate(tiny: Model, tmp_path: Path) -> None:
    """The header as efface wrote it before "preserve": concepts under "keep", patterns of a pruning under "keep"."""
    old = an_edit(tiny, ["dog"], key="keep")
    pruned = replace(old, meta={"format": 1, "op": "prune", "keep": ["attn2"], "drop": ["up"], "parts": [old.meta]})
    for i, edit in enumerate((old, pruned)):
        edit.save(tmp_path / f"{i}.safetensors")
        loaded = Edit.load(tmp_path / f"{i}.safetensors")
        assert (loaded, loaded.id) == (edit, edit.id)
        for one in (loaded, loaded.prune(only="attn2"), 0.5 * loaded + an_edit(tiny)):
            found = evaluate(tiny, one, TABLE["church"], TABLE, Reader(), PLAN, paint(tmp_path, {}))
            assert found.edit.preserved == ("dog",)
            assert {name for name, value in found.singles.items() if value.preserved} == {"dog"}


def test_change_is_paired(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"guitar": "dog"})
    group = evaluate(tiny, an_edit(tiny), TABLE["church"], TABLE, Reader(), PLAN, store).summaries["objects"]
    assert group.change.value == pytest.approx(-1 / 8)
    assert (group.change.low, group.change.high) == pytest.approx(
        paired_difference([True] * 8, [True] * 7 + [False]), abs=1e-6
    )


def test_style_groups(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"neon": "plain"})
    groups = evaluate(tiny, an_edit(tiny), TABLE["neon"], TABLE, Reader(), PLAN, store).summaries
    assert groups["target"].before.value == 1
    assert groups["target"].after.value == 0
    assert groups["styles"].after.value == 1
    assert groups["objects"].after.value == 1
    assert groups["content"].after.value == 1
    assert "implicit" not in groups


def test_several_targets_are_pooled_and_are_not_each_others_relatives(tiny: Model, tmp_path: Path) -> None:
    store = paint(tmp_path, {"church": "dog"})
    targets = [TABLE["church"], TABLE["house"]]
    found = evaluate(tiny, an_edit(tiny), targets, TABLE, Reader(), PLAN, store)
    assert found.concept == "church, house"
    assert found.summaries["target"].after.value == 0.5
    assert found.singles["house"].group == "target"


class Random(Judge):
    """A judge that is a fixed random linear map: its verdicts depend on every pixel."""

    classes, styles, profile = OBJECTS, STYLES, Profile(evaluator="random")

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        maps = torch.randn(3 * 16 * 16, len(OBJECTS), generator=torch.Generator().manual_seed(0))
        return ((images - 0.5).flatten(1) @ maps).softmax(dim=1)

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        return self.objects(images)[:, : len(STYLES)]


def test_numbers_equal_an_independent_count(tiny: Model, tmp_path: Path) -> None:
    """Draw and count by hand: images of the edited model, in 8 bits, judged one prompt at a time."""
    plan = Plan(
        seeds=(0, 1), related_seeds=(0, 1), target_seeds=(0, 1, 2), implicit_seeds=(5,), styled_seeds=(0,), steps=2,
        guidance=4.0, batch=3,
    )  # fmt: skip
    edit = an_edit(tiny)
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path))
    queries = [Query("a picture of a dog", seed, steps=2, guidance=4.0) for seed in (0, 1)]
    for when, change in (("before", Edit()), ("after", edit)):
        with change.applied(tiny) as model:
            drawn = (model.generate(queries) * 255).round() / 255
        seen = Random().objects(drawn).argsort(dim=1, descending=True)
        mine = found.singles["dog"]
        first, five = (mine.before, mine.before5) if when == "before" else (mine.after, mine.after5)
        assert first.value == (seen[:, 0] == OBJECTS.index("dog")).float().mean()
        assert five.value == (seen[:, :5] == OBJECTS.index("dog")).any(1).float().mean()


def test_a_second_evaluation_generates_nothing(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(seeds=(0,), related_seeds=(0,), target_seeds=(0,), implicit_seeds=(), styled_seeds=(), steps=1)
    edit = an_edit(tiny)
    first = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path))
    monkeypatch.setattr(Model, "generate", None)
    again = evaluate(tiny, edit, TABLE["church"], TABLE, Random(), plan, Store(tmp_path))
    assert again.model_copy(update={"created": first.created, "evaluating": first.evaluating}) == first


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


def test_implicit_prompts_never_combine_distant_keywords() -> None:
    phrases = implicit_prompts(WORDS)
    assert len(phrases) == len(set(phrases)) == 6
    assert all(len(phrase.split()) == 3 for phrase in phrases)
    for i in range(3):
        assert not any({WORDS[i], WORDS[i + 3]} <= set(phrase.split()) for phrase in phrases)
    assert implicit_prompts(()) == []
    assert implicit_prompts(("place of worship", "cross")) == ["place of worship", "cross"]


def test_held_out_phrases_are_a_group_of_their_own() -> None:
    cases = Plan().cases([TABLE["church"]], TABLE, {"church": ["building red"]})
    held = [case for case in cases if case.groups == ("implicit_held_out",)]
    assert [case.prompt for case in held] == ["building red"]


def test_a_record_names_all_that_numbers_depend_on(tiny: Model, tmp_path: Path) -> None:
    found = evaluate(tiny, an_edit(tiny), TABLE["church"], TABLE, Reader(), PLAN, paint(tmp_path, {}))
    assert found.model.id == tiny.id
    assert found.evaluator.sha256 == {"all": "0"}
    assert found.sampling.solver == "PNDMScheduler"
    assert (found.sampling.steps, found.sampling.guidance) == (PLAN.steps, PLAN.guidance)
    assert found.sampling.seeds["target_seeds"] == (0, 1, 2)
    assert set(found.sampling.prompts) == {"object", "style", "styled", "implicit"}
    assert found.versions == versions()
    assert found.evaluating is not None
    assert found.evaluating.peak_mb
    assert found.edit.erased == ("church",)
    assert found.created


def test_a_record_survives_json(tiny: Model, tmp_path: Path) -> None:
    found = evaluate(tiny, an_edit(tiny), TABLE["church"], TABLE, Reader(), PLAN, paint(tmp_path, {}))
    assert Record.model_validate_json(found.model_dump_json()) == found


def test_every_group_has_a_better_direction_and_fitting_verdicts() -> None:
    better = {group.name: group.better for group in GROUPS}
    assert {name for name, end in better.items() if end == "low"} == {
        "target", "styled", "implicit", "implicit_held_out", "reworded", "joined",
    }  # fmt: skip
    assert len(better) == len(GROUPS)
    for group in GROUPS:
        assert len(group.says) in ((0, 3) if group.better == "low" else (0, 1))
