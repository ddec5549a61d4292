"""Fixtures: the analytic digits model; a judge of tiny images and targets to attack."""

import runpy
from pathlib import Path

import pytest
import torch

from efface.attack import Target
from efface.concept import Concept
from efface.edits.guard import Guard
from efface.judge import Judge, Profile
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD

lamp = runpy.run_path(str(Path(__file__).parents[1] / "digits" / "conftest.py"))["lamp"]


class Eye(Judge):
    """Judge images by fixed random features; `always` overrules what it sees of the concept."""

    classes = ("dog", "wolf", "fox")
    profile = Profile(evaluator="eye")

    def __init__(self, always: bool | None = None, clip: bool = False):
        self.always, self.reads_text, self.asked = always, clip, 0
        if clip:
            self._clip = self

    def _features(self, images, width, key):
        table = torch.randn(images[0].numel(), width, generator=torch.Generator().manual_seed(key))
        return (images - 0.5).flatten(1) @ table

    def image(self, images):
        """Return image vectors as those of a CLIP."""
        return self._features(images, 12, 1)

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
