"""Which model this is: hashes of weights, settings and guards."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efface import registry
from efface.edits.guard import Guard, MapGuard
from efface.util.files import sha256_tensors, sha256_text

if TYPE_CHECKING:
    from efface.models.model import Model


def model_id(model: "Model") -> str:
    """Return the sha256 of the weights and the scheduler's configuration, and of edits and guards if any."""
    if model.origin is not None:
        parts: list[Any] = [model.origin[0].id, model.origin[1]]
    else:
        config = model.part("scheduler").config.items()
        parts = [sha256_tensors(model.weights("")), {k: v for k, v in config if not k.startswith("_diffusers")}]
    parts += [guard_id(guard) for guard in model.guards]
    return sha256_text(json.dumps(parts, sort_keys=True, default=str))


def guard_id(guard: Guard | MapGuard) -> Any:
    """Return JSON values that tell guards apart."""
    if isinstance(guard, MapGuard):
        return sha256_tensors({"left": guard.left, "right": guard.right})
    return [registry.to_json(guard.method), [concept.to_json() for concept in guard.erase]]


def hashes(model: "Model", names: Iterable[str]) -> dict[str, str]:
    """Return 16 hex digits for every named weight, remembered until its values change."""
    weights = model.weights("")
    return {name: _hash(model, name, weights[name]) for name in names}


def _hash(model: "Model", name: str, weight: nn.Parameter) -> str:
    state = (weight.data_ptr(), weight._version)  # changes when the values do
    known = model.known_hashes
    if name not in known or known[name][0] != state:
        known[name] = state, sha256_tensors({"": weight.detach().bfloat16().view(torch.int16)})[:16]
    return known[name][1]


def base(model: "Model", names: Iterable[str]) -> dict[str, Any]:
    """Describe a model in an edit's provenance; `hashes` covers the edit's own weights."""
    known = hashes(model, sorted(names))
    shapes = [[name, list(weight.shape)] for name, weight in sorted(model.weights().items())]
    return {
        "name": model.name,
        "id": model.id,
        "fingerprint": sha256_text(json.dumps(known)),
        "architecture": sha256_text(json.dumps(shapes)),
        "cross_attention": model.cross_attention(),
        "hashes": known,
    }
