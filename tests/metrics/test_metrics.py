"""Every metric of the folder: its range, its value for identical images, what it needs; and known values."""

import json
import sys
from typing import get_args

import pytest
import torch

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput, UnknownName
from efface.judge import Judge, Profile
from efface.methods.uce import UCE
from efface.metric import Better, Need, Samples
from efface.metrics.changed_weights import ChangedWeights
from efface.metrics.clip_score import ClipScore
from efface.metrics.presence import Presence
from efface.metrics.ssim import SSIM
from efface.models.model import Model
from efface.query import Query

NAMES = registry.names("metrics")
N = 4


class Bright(Judge):
    """Judge of "dark", "grey", "light" by the mean; its CLIP score is the brightness."""

    classes, styles, profile = ("dark", "grey", "light"), ("plain", "neon"), Profile(evaluator="bright")
    reads_text = True

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        centres = torch.tensor([0.0, 0.5, 1.0])
        return (-20 * (images.mean((1, 2, 3))[:, None] - centres).abs()).softmax(1)

    def style_probs(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0].mean((1, 2))[:, None]
        return torch.cat([1 - red, red], 1)

    def clip_score(self, images, texts):
        return images.mean((1, 2, 3))

    def image_features(self, images):
        return images.mean((2, 3))


class Blind(Bright):
    reads_text = False


@pytest.fixture
def whole(tiny) -> Samples:
    """Samples with every input of metrics; the images are the original's."""
    x = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.02 * x[0], 1 - 0.02 * x[1]
    return Samples(
        x, x.clone(), x.clone(), ["a"] * N, [Query("a")] * N, ["dark", "light", "grey", "grey"], ["object"] * N,
        Bright(), tiny, Edit(),
    )  # fmt: skip


def without(samples: Samples, need: str) -> Samples:
    values = {name: getattr(samples, name) for name in ("kinds", *get_args(Need))}
    values[need] = () if need in ("texts", "labels", "queries") else None
    if need == "images":
        values |= {"original": None, "texts": (), "queries": (), "labels": (), "kinds": ()}
    return Samples(**values)


@pytest.fixture
def make(backbone, detector, monkeypatch):
    """Return name -> the metric of that name, with the files and packages that it needs; NudeNet finds nothing."""
    monkeypatch.setattr(detector, "detect", lambda self, image: [])
    settings = {"lpips": {"weights": str(backbone)}, "latent_likelihood": {"steps": 2, "rounds": 1}}
    return lambda name: registry.get("metrics", name)(**settings.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_keeps_its_range_and_scores_no_change_as_perfect(name: str, whole: Samples, make) -> None:
    metric = make(name)
    scores = metric(whole)
    assert scores.dtype == torch.float32
    assert scores.shape == ((N,) if metric.PER_IMAGE else ())
    low, high = metric.RANGE
    assert low < high
    assert (scores >= low - 1e-5).all()
    assert (scores <= high + 1e-5).all()
    assert metric.BETTER in get_args(Better)
    if metric.BETTER != "as its group":
        best = high if metric.BETTER == "high" else low
        torch.testing.assert_close(scores, torch.full_like(scores, best), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_scores_images_and_edits_of_flows_too(name: str, tiny_each: Model, make) -> None:
    edit = UCE()(tiny_each, ["church"])
    asked = [Query("a church", seed, 2, 3.0) for seed in range(N)]
    original = tiny_each.generate(asked)
    with edit.applied(tiny_each) as edited:
        images = edited.generate(asked)
    labels = ["dark", "light", "grey", "grey"]
    samples = Samples(images, original, original, ["a"] * N, asked, labels, ["object"] * N, Bright(), tiny_each, edit)
    scores = make(name)(samples)
    assert scores.isfinite().all()
    if name == "changed_weights":
        changed = tiny_each.weights()["transformer.context_embedder.weight"].numel()
        assert float(scores) == pytest.approx(changed / sum(w.numel() for w in tiny_each.weights().values()))


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_refuses_what_lacks_something_it_needs(name: str, whole: Samples, make) -> None:
    metric = make(name)
    assert metric.NEEDS
    for need in metric.NEEDS:
        with pytest.raises(BadInput, match=rf"the metric {type(metric).__name__} needs "):
            metric(without(whole, need))
    others = set(get_args(Need)) - set(metric.NEEDS) - {"images"}
    for need in others:
        assert torch.equal(metric(without(whole, need)), metric(whole))


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_has_a_json_form_and_says_what_it_is(name: str) -> None:
    cls = registry.get("metrics", name)
    for metric in (cls(), *(registry.build(cls, **values) for values in cls.PRESETS.values())):
        assert registry.from_json(json.loads(json.dumps(registry.to_json(metric)))) == metric
    assert registry.summary("metrics", name)
    assert all(field.help for field in registry.describe(cls))


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_says_what_its_scores_depend_on(name: str, whole: Samples, make) -> None:
    metric, cls = make(name), registry.get("metrics", name)
    told = metric.instrument(whole.judge)
    assert json.loads(json.dumps(told)) == told
    assert told["metric"] == name
    assert "/" not in json.dumps(told)  # a file is its hash, wherever it lies
    if "judge" in metric.NEEDS:
        assert told["judge"]["evaluator"] == "bright"
    assert metric.label.startswith(name)
    labels = [registry.build(cls, **values).label for values in ({}, *cls.PRESETS.values())]
    settings = [registry.build(cls, **values) for values in ({}, *cls.PRESETS.values())]
    assert len(set(labels)) == len(set(settings))  # one label for each setting, and no more


def test_presence_is_the_first_k_names(whole: Samples) -> None:
    assert Presence()(whole).tolist() == [1, 1, 1, 1]
    wrong = Samples(whole.images, labels=["light", "light", "dark", "light"], judge=Bright())
    assert Presence()(wrong).tolist() == [0, 1, 0, 0]
    assert Presence(k=2)(wrong)[0] == 0
    assert Presence(k=3)(wrong).tolist() == [1, 1, 1, 1]
    assert Presence(k=5)(wrong).tolist() == [1, 1, 1, 1]  # more than the judge knows
    style = Samples(
        whole.images, labels=["neon", "neon", "grey", "grey"], kinds=["style"] * 2 + ["object"] * 2, judge=Bright()
    )
    assert Presence()(style).tolist() == [0, 1, 1, 1]
    with pytest.raises(UnknownName, match="class of the judge 'church'"):
        Presence()(Samples(whole.images, labels=["church"] * N, judge=Bright()))
    with pytest.raises(BadInput, match="k must be from 1 to 1000, got 0"):
        Presence(k=0)


def test_the_judge_runs_once_for_all_metrics(whole: Samples, monkeypatch) -> None:
    asked: list[int] = []
    objects = Bright.objects
    monkeypatch.setattr(Bright, "objects", lambda self, x: asked.append(len(x)) or objects(self, x))
    Presence()(whole)
    Presence(k=2)(whole)
    assert asked == [N]


def test_ssim_known_values(whole: Samples) -> None:
    """Constant images: (2ab + c) / (a² + b² + c) with c = 0.01²; and noise is unlike."""
    a, b = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    known = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    torch.testing.assert_close(SSIM()(Samples(a, b)), torch.tensor([known]), atol=1e-4, rtol=0)
    noise = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert (SSIM()(Samples(noise, whole.original)) < 0.5).all()


def test_a_missing_package_is_named(whole: Samples, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert SSIM().missing(whole)
    with pytest.raises(BadInput, match=r"SSIM needs the package torchmetrics.*efface\[eval\]"):
        SSIM()(whole)


def test_clip_score_is_the_judges(whole: Samples) -> None:
    assert whole.images is not None
    torch.testing.assert_close(ClipScore()(whole), whole.images.mean((1, 2, 3)))
    with pytest.raises(BadInput, match="needs a judge with a CLIP"):
        ClipScore()(Samples(whole.images, texts=["a"] * N, judge=Blind()))


def test_changed_weights_counts_what_differs(tiny) -> None:
    name = tiny.text_weights()[0]
    delta = torch.zeros_like(tiny.weights()[name])
    delta.view(-1)[:5] = 0.1
    total = sum(p.numel() for p in tiny.weights().values())
    assert float(ChangedWeights()(Samples(model=tiny, edit=Edit({name: delta})))) == pytest.approx(5 / total)
    guard = registry.get("methods", "negative")()(tiny, [Concept("church")])
    assert float(ChangedWeights()(Samples(model=tiny, edit=guard))) == 0


def test_samples_are_one_for_each_image() -> None:
    x = torch.rand(2, 3, 16, 16)
    for values in ({"texts": ["a"]}, {"labels": ["a"] * 3}, {"kinds": ["object"]}):
        with pytest.raises(BadInput, match="one for each of the 2 images"):
            Samples(x, **values)
