"""Every trained method computes on its model's device, shown without one: on the meta device, which has no values."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efface import registry
from efface.concept import Concept
from efface.methods.finetune.method import FineTune, Run
from efface.models.model import Model

TRAINED = [name for name in registry.names("methods") if issubclass(registry.get("methods", name), FineTune)]
MOVES = ("aten._to_copy", "aten.copy_", "aten.index.", "aten.index_put")  # the last two take positions on the CPU
READS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero")


name_of = functools.cache(str)  # of an operation; it is slow to make


class OneDevice(TorchDispatchMode):
    """Fail when an operation mixes devices, as it would on a GPU; where code reads a value, it reads 1, or index 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = name_of(func)
        kinds = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()}
        if len(kinds) > 1 and not name.startswith(MOVES):
            raise AssertionError(f"{name} mixes {', '.join(sorted(kinds))}")
        if name.startswith(READS) and args[0].is_meta:
            return {torch.bool: True, torch.long: 0}.get(args[0].dtype, 1.0)
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return args[0].new_empty(1, args[0].dim(), dtype=torch.long)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def nowhere(_loaded: Model) -> Model:
    """Return the tiny model on the meta device."""
    pipe = copy.copy(_loaded.pipe)
    for part in ("unet", "vae", "text_encoder"):
        setattr(pipe, part, copy.deepcopy(getattr(pipe, part)).to("meta"))
    return Model(pipe)


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
