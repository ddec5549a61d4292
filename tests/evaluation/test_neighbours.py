"""Neighbours: by sight, in other sentences, and beside the erased concept; and evaluations of given prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efface import Concept, Edit
from efface.errors import BadInput, UnknownName
from efface.evaluation.compare import check_comparable
from efface.evaluation.drift import drift
from efface.evaluation.evaluate import evaluate
from efface.evaluation.prompts import Case, Plan
from efface.evaluation.store import Store
from efface.finding import Finding
from efface.judge import Judge, Profile
from efface.metrics.clip_score import ClipScore
from efface.metrics.fid import FID
from efface.metrics.kid import KID
from efface.metrics.psnr import PSNR
from efface.models.model import Model

NAMES = ("church", "house", "castle", "guitar", "dog", "wolf")
TABLE = {name: Concept(name) for name in NAMES}
LOOKS = {"church": (1.0, 0.0), "house": (0.9, 0.1), "castle": (0.8, 0.3), "guitar": (0.0, 1.0), "dog": (0.1, 0.9)}
PLAN = Plan(
    target_seeds=(0, 1), related_seeds=(0,), seeds=(0, 1), implicit_seeds=(), styled_seeds=(), reworded_seeds=(0,),
    paired_seeds=(0, 1), look_alikes=2, steps=1,
)  # fmt: skip


class Namer(Judge):
    """A judge that reads the number of a name and its looks from the first pixels."""

    classes, profile, reads_text = NAMES, Profile(evaluator="namer", input=8), True

    def objects(self, images):
        return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 100).round().long(), len(NAMES)).float()

    def image_features(self, images):
        return torch.nn.functional.normalize(images[:, 1, 0, :2] + 0.01 * images[:, 1, 1, :2], dim=1)

    def clip_score(self, images, texts):
        return images[:, 1, 0, 0]


class Painter(Store):
    """A store whose images show the first name of their prompt, but that an edit turns a church into a house."""

    def images(self, model, edit_id, queries, batch=32):
        out = torch.zeros(len(queries), 3, 8, 8)
        for image, query in zip(out, queries, strict=True):
            named = [word for word in query.prompt.replace(",", " ").split() if word in NAMES]
            name = named[0] if named else "wolf"
            if edit_id:
                name = named[-1] if len(named) > 1 else "house" if name == "church" else name
            image[0, 0, 0] = NAMES.index(name) / 100
            image[1, 0, :2] = torch.tensor(LOOKS.get(name, (0.3, 0.7)))
            image[1, 1, :2] = torch.tensor([query.seed % 2, query.seed % 3])
            image[2, 0, 0] = query.guidance / 100
        return out


@pytest.fixture
def edit(tiny: Model) -> Edit:
    name = tiny.text_weights()[0]
    return Edit({name: torch.full_like(tiny.weights()[name], 0.3)}, meta={"erase": [{"name": "church"}]})


def test_neighbours_are_groups(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Namer(), PLAN, Painter(tmp_path), metrics=[]).summaries
    near = evaluate(tiny, edit, TABLE["church"], TABLE, Namer(), PLAN, Painter(tmp_path), metrics=[]).rows
    assert {row.concept for row in near if "look_alikes" in row.groups} == {"house", "castle"}
    assert found["look_alikes"].after.n == 4
    assert (found["reworded"].before.hits, found["reworded"].after.hits, found["reworded"].after.n) == (3, 0, 3)
    assert (found["joined"].before.value, found["joined"].after.value) == (1, 0)  # the erased one, beside another
    assert (found["beside"].before.value, found["beside"].after.value) == (0, 1)  # the other one
    assert found["joined"].after.n == found["beside"].after.n == 5 * 2
    assert {row.query.prompt for row in near if row.groups == ("beside",)} == {
        f"a picture of a church and a {name}" for name in NAMES[1:]
    }


def test_without_seeds_or_a_clip_there_are_none(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    plain = Plan(target_seeds=(0,), seeds=(0,), related_seeds=(), implicit_seeds=(), styled_seeds=(), look_alikes=2)
    blind = Namer()
    blind.reads_text = False
    found = evaluate(tiny, edit, TABLE["church"], TABLE, blind, plain, Painter(tmp_path), metrics=[])
    assert set(found.summaries) == {"target", "unrelated", "objects"}
    assert not set(found.sampling.seeds) & {"reworded_seeds", "paired_seeds"}


def test_given_prompts_take_the_place_of_the_plans(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    cases = [
        Case(("target",), "church", "image of church", "object", "church", (0, 1)),
        Case(("unrelated",), "dog", "image of dog", "object", "dog", (0, 1)),
        Case(("coco",), "church", "a wolf", "object", "", (7, 8), guidance=3.0),
    ]
    metrics = [ClipScore(), FID(), KID(), PSNR()]
    found = evaluate(tiny, edit, TABLE["church"], {}, Namer(), PLAN, Painter(tmp_path), metrics=metrics, cases=cases)
    assert set(found.summaries) == {"target", "unrelated"}  # what has no label has no verdict
    assert found.summaries["target"].after.value == 0
    coco = [row for row in found.rows if row.groups == ("coco",)]
    assert {row.query.guidance for row in coco} == {3.0}
    assert {(row.seen, row.top1, row.top5) for row in coco} == {("", False, False)}
    mean = found.mean("clip_score", "coco")
    assert mean is not None
    assert mean.n == 2
    assert found.sets["fid:judge"]["coco"].value == pytest.approx(0, abs=1e-6)  # the edit leaves a wolf as it is
    assert found.sets["fid:judge"]["target"].value > 0.001
    assert found.sets["kid:judge"]["target"].n == 2
    assert found.metrics["fid:judge"]["judge"] == Namer().profile.model_dump()
    other = evaluate(tiny, edit, TABLE["church"], {}, Namer(), PLAN, Painter(tmp_path), metrics=[], cases=cases[:2])
    with pytest.raises(BadInput, match="their prompts differs"):
        check_comparable([found, other])
    with pytest.raises(UnknownName, match="class of the judge 'moon'"):
        evaluate(tiny, edit, TABLE["church"], {}, Namer(), PLAN, Painter(tmp_path), cases=[
            Case(("target",), "moon", "moon", "object", "moon", (0,))
        ])  # fmt: skip
    with pytest.raises(BadInput, match="there are no prompts"):
        evaluate(tiny, edit, TABLE["church"], {}, Namer(), PLAN, Painter(tmp_path), cases=[])


def test_a_sets_score_is_the_metrics_own_over_a_groups_images(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    """The vectors are collected in batches of four; the number is that of all images of the group at once."""
    from efface.metric import Samples
    from efface.query import Query

    plan = Plan(
        target_seeds=tuple(range(6)), seeds=(0, 1), related_seeds=(), implicit_seeds=(), styled_seeds=(), batch=2
    )
    store = Painter(tmp_path)
    found = evaluate(tiny, edit, TABLE["church"], TABLE, Namer(), plan, store, metrics=[FID(), KID()])
    asked = [Query("a picture of a church", seed) for seed in range(6)]
    samples = Samples(store.images(tiny, "x", asked), store.images(tiny, "", asked), judge=Namer())
    for metric in (FID(), KID()):
        assert found.sets[metric.label]["target"].value == pytest.approx(float(metric(samples)), abs=1e-5)
        assert found.sets[metric.label]["target"].n == 6


def test_instruments_of_a_metric_are_not_mixed(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    first = evaluate(tiny, edit, TABLE["church"], TABLE, Namer(), PLAN, Painter(tmp_path), metrics=[FID()])
    told = {**first.metrics["fid:judge"], "weights": "0" * 16}
    check_comparable([first, first])
    with pytest.raises(BadInput, match="instrument of fid:judge differs"):
        check_comparable([first, first.model_copy(update={"metrics": {"fid:judge": told}})])
    check_comparable([first, first.model_copy(update={"metrics": {}})])  # without the metric: nothing to mix
    other = first.model_copy(update={"evaluator": Profile(evaluator="other")})
    with pytest.raises(BadInput, match=r"cannot share a table: their evaluator differs \(namer and other\)"):
        check_comparable([first, other])


def test_two_metrics_of_one_name_are_refused(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="would be called the same: fid:judge"):
        evaluate(
            tiny, edit, TABLE["church"], TABLE, Namer(), PLAN, Painter(tmp_path), metrics=[FID(), FID(weights="x")]
        )


def test_drift_is_what_a_fine_tuning_changes(tiny: Model, edit: Edit, tmp_path: Path) -> None:
    class Drifting(Painter):
        """The sum of two edits shows the church again, for even seeds."""

        def images(self, model, edit_id, queries, batch=32):
            plain = super().images(model, "", queries, batch)
            changed = super().images(model, edit_id, queries, batch)
            even = torch.tensor([query.seed % 2 == 0 for query in queries])
            return torch.where(even[:, None, None, None], plain, changed) if edit_id not in ("", edit.id) else changed

    name = tiny.text_weights()[1]
    tuned = Finding(edit=Edit({name: torch.full_like(tiny.weights()[name], 0.1)}))
    plan = Plan(target_seeds=(0, 1, 2, 3), seeds=(0,), related_seeds=(), implicit_seeds=(), styled_seeds=(), steps=1)
    found = drift(tiny, edit, tuned, TABLE["church"], TABLE, Namer(), plan=plan, store=Drifting(tmp_path), metrics=[])
    assert found.change("target").value == 0.5
    assert found.change("unrelated").value == 0
    assert {name: share.value for name, share in found.parts.items()} == {
        "safety": 1.0, "robustness": 0.5, "preservation": 1.0,
    }  # fmt: skip
    assert found.harmonic_mean == pytest.approx(3 / (1 + 2 + 1))
    with pytest.raises(BadInput, match="no images of the group styles"):
        found.change("styles")
    other = replace(tuned, meta={"edited": {"edit": "of another edit"}})
    with pytest.raises(BadInput, match="the fine-tuning is of the edit of another"):
        drift(tiny, edit, other, TABLE["church"], TABLE, Namer(), plan=plan)
    with pytest.raises(BadInput, match="needs a finding that changes weights"):
        drift(tiny, edit, Finding(), TABLE["church"], TABLE, Namer(), plan=plan)
