"""Fixtures: the analytic digits model, and tiny models with a judge."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.query import Query

Likeness = runpy.run_path(str(Path(__file__).with_name("likeness.py")))["Likeness"]
lamp = runpy.run_path(str(Path(__file__).parents[1] / "digits" / "conftest.py"))["lamp"]


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
