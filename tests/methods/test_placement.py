"""Every trained method computes on its model's device, shown without one: on the meta device, which has no values."""

import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from efface import registry
from efface.concept import Concept
from efface.methods.finetune.method import FineTune, Run
from efface.models.model import Model

TRAINED = [name for name in registry.names("methods") if issubclass(registry.get("methods", name), FineTune)]
OneDevice = runpy.run_path(str(Path(__file__).parents[1] / "one_device.py"))["OneDevice"]


def steps_of(method: FineTune, model: Model) -> Run:
    """Train as `fit` does, but for the edit, which needs values."""
    run = Run(method, model, (Concept("church", anchor="house"), Concept("dog")), (Concept("cat"),), 0)
    run.autocast = nullcontext  # pyright: ignore[reportAttributeAccessIssue]  # this device has none
    with OneDevice():
        run.descend(method.objective(run))
    return run


@pytest.mark.parametrize("name", TRAINED)
def test_every_tensor_is_where_the_model_is(name: str, nowhere: Model):
    cls = registry.get("methods", name)
    run = steps_of(registry.build(cls, **{**cls.QUICK, "steps": 2}), nowhere)
    state = [*run.weights.values(), *run.masters.values(), *run.state.tensors.values()]
    assert {t.device.type for t in state} == {"meta"}
    assert run.state.step == 2


def test_a_mixture_is_noticed(nowhere: Model):
    x, here = torch.randn(1, *nowhere.latent_shape), nowhere.null()
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        nowhere.eps(x, 500, here)
