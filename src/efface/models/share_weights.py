"""Copies of modules that share all parameters but a few."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from efface.errors import BadModel

M = TypeVar("M", bound=nn.Module)


def with_weights(module: M, values: Mapping[str, Tensor]) -> M:
    """Return a copy of a module in which the named parameters have other values; all others are shared with it.

    Tied parameters stay tied. No value is copied.
    """
    new = {id(module.get_parameter(name)): values[name] for name in values}
    made: dict[int, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}

    def parameter(old: nn.Parameter | None) -> nn.Parameter | None:
        if old is None or id(old) not in new:
            return old
        if id(old) not in parameters:
            parameters[id(old)] = nn.Parameter(new[id(old)], requires_grad=old.requires_grad)
        return parameters[id(old)]

    def view(old: nn.Module) -> nn.Module:
        if id(old) in made:
            return made[id(old)]
        if "forward" in vars(old):
            raise BadModel("an edit cannot be applied to a model with replaced forward methods (offloading); attach it")
        twin = copy.copy(old)
        made[id(old)] = twin
        state = vars(twin)
        for key in ("_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            state[key] = copy.copy(state[key])
        state["_parameters"] = {name: parameter(value) for name, value in old._parameters.items()}
        state["_modules"] = {name: value and view(value) for name, value in old._modules.items()}
        return twin

    return view(module)  # pyright: ignore[reportReturnType]
