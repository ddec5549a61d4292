"""Identity of a model: hashes of weights, settings and guards."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from efface import registry
from efface.edits.guard import Guard, MapGuard
from efface.util.files import sha256_tensors, sha256_text

Known = dict[str, tuple[tuple[int, int], str]]  # name -> (state of the weight, its hash)


def model_id(weights: Mapping[str, Tensor], scheduler: Mapping[str, Any], guards: Iterable[Guard | MapGuard]) -> str:
    """Return the sha256 of the weights, of the scheduler's configuration, and of guards if any."""
    config = {key: value for key, value in scheduler.items() if not key.startswith("_diffusers")}
    return _sha256([sha256_tensors(weights), config, *map(guard_id, guards)])


def derived_id(base: str, edit: str, guards: Iterable[Guard | MapGuard]) -> str:
    """Return the id of a model with an edit and guards on top of the model whose id is `base`."""
    return _sha256([base, edit, *map(guard_id, guards)])


def guard_id(guard: Guard | MapGuard) -> Any:
    """Return JSON values that identify guards."""
    if isinstance(guard, MapGuard):
        return sha256_tensors({"left": guard.left, "right": guard.right})
    return [registry.to_json(guard.method), [concept.to_json() for concept in guard.erase]]


def hashes(weights: Mapping[str, Tensor], names: Iterable[str], known: Known) -> dict[str, str]:
    """Return 16 hex digits for every named weight; `known` caches them until the values change."""
    return {name: _hash(name, weights[name], known) for name in names}


def _hash(name: str, weight: Tensor, known: Known) -> str:
    state = (weight.data_ptr(), weight._version)  # changes when the values do
    if name not in known or known[name][0] != state:
        known[name] = state, sha256_tensors({"": weight.detach().bfloat16().view(torch.int16)})[:16]
    return known[name][1]


def _sha256(parts: list[Any]) -> str:
    return sha256_text(json.dumps(parts, sort_keys=True, default=str))
