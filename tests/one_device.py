"""A GPU without one: on the meta device, which has no values, an operation that mixes devices fails."""

import functools

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOVES = ("aten._to_copy", "aten.copy_", "aten.index.", "aten.index_put")  # the last two take positions on the CPU
READS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero")

name_of = functools.cache(str)  # of an operation; it is slow to make


class OneDevice(TorchDispatchMode):
    """Fail when an operation mixes devices, as it would on a GPU; where code reads a value, it reads 1, or index 0.

    What is moved to the CPU becomes ones there.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = name_of(func), kwargs or {}
        kinds = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()}
        from_cpu = name.startswith("aten.index.") and args[0].device.type == "cpu"  # by positions that are elsewhere
        if len(kinds) > 1 and (from_cpu or not name.startswith(MOVES)):
            raise AssertionError(f"{name} mixes {', '.join(sorted(kinds))}")
        if name.startswith(READS) and args[0].is_meta:
            return {torch.bool: True, torch.long: 0}.get(args[0].dtype, 1.0)
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return args[0].new_empty(1, args[0].dim(), dtype=torch.long)
        to = kwargs.get("device")
        if name.startswith("aten._to_copy") and args[0].is_meta and to is not None and torch.device(to).type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


def lists(monkeypatch) -> None:
    """Let tensors without values be turned into lists, of ones."""
    plain = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda t: plain(torch.ones(t.shape, dtype=t.dtype) if t.is_meta else t))
