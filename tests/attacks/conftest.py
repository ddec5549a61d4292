"""Fixtures: the analytic digits model; judges of tiny images, and models and targets to attack."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from efface.attack import Target
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.judge import Judge, Profile
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.query import Query

Likeness = runpy.run_path(str(Path(__file__).with_name("likeness.py")))["Likeness"]
lamp = runpy.run_path(str(Path(__file__).parents[1] / "digits" / "conftest.py"))["lamp"]


class Eye(Judge):
    """Judge images by fixed random features; `always` overrules what it sees of the concept."""

    classes = ("dog", "wolf", "fox")
    profile = Profile(evaluator="eye")

    def __init__(self, always: bool | None = None, clip: bool = False):
        self.always, self.reads_text, self.asked = always, clip, 0

    def _features(self, images, width, key):
        table = torch.randn(images[0].numel(), width, generator=torch.Generator().manual_seed(key))
        return (images - 0.5).flatten(1) @ table

    def image_features(self, images):
        """Return unit vectors as those of a CLIP."""
        return torch.nn.functional.normalize(self._features(images, 12, 1), dim=1)

    def objects(self, images):
        self.asked += len(images)
        if self.always is not None:
            return torch.tensor([[0.9, 0.1, 0.0] if self.always else [0.1, 0.9, 0.0]]).repeat(len(images), 1)
        return self._features(images, 3, 2).softmax(1)


@pytest.fixture
def eye():
    """Return the class of a judge of tiny images."""
    return Eye


def attacked(model, judge, guard=""):
    """Return a target whose edited model differs from the original one in its cross-attention, or by a guard."""
    if guard:
        method = NegativePrompt() if guard == "negative" else SLD(warmup=0, scale=200.0)
        return Target(model.guarded(Guard(method, (Concept("dog"),))), judge, model)
    names = model.text_weights()
    changed = {name: model.weights()[name].detach().roll(1, 0) for name in names}
    return Target(model.edited(changed, id="rolled"), judge, model)


@pytest.fixture
def attack_on():
    """Return (model, judge, guard) -> a target: an edited model, or the model behind a guard."""
    return attacked


@pytest.fixture
def pix(tiny):
    """Return the tiny model, one with other cross-attention weights, what a judge likes, and queries."""
    return _pix(tiny)


@pytest.fixture
def pix_xl(tiny_xl):
    """Return the same of the tiny SDXL."""
    return _pix(tiny_xl)


def _pix(original):
    queries = tuple(Query("a photo of a church", seed, 6, 3.0, solver="ddim") for seed in (0, 1))
    edit = blur(original)
    judge = Likeness(original.generate(queries))
    with edit.applied(original) as edited:
        guarded = {
            "weights": edited,
            "negative": original.guarded(Guard(NegativePrompt(), (Concept("church"),))),
            "sld": original.guarded(Guard(SLD(warmup=1), (Concept("church"),))),
        }
    return SimpleNamespace(original=original, edit=edit, edited=edited, judge=judge, queries=queries, models=guarded)


def blur(model, scale=1.0):
    """Return an edit that replaces the cross-attention's keys and values by others of their size."""
    delta = {}
    for i, name in enumerate(model.text_weights()):
        weight = model.weights()[name]
        other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * weight.std()
        delta[name] = scale * (other - weight.detach())
    return Edit(delta=delta, meta={"method": "blur", "base": model.base(delta)})
