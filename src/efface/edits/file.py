"""Edit files: one safetensors file with the tensors, and the provenance as JSON in its header."""

import json
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.edits.guard import Guard, InferenceTime, MapGuard
from efface.edits.parts import Parts, TextMap
from efface.edits.provenance import FORMAT
from efface.errors import BadEdit, BadInput, UnknownName
from efface.util.files import load_safetensors, save_safetensors, sha256_tensors, sha256_text


def content_id(edit: Parts) -> str:
    """Return the sha256 of what an edit does: differences, maps and guards, without provenance and `extra`."""
    tensors, guards = pack(replace(edit, extra={}))
    return sha256_text(sha256_tensors(tensors) + json.dumps(guards, sort_keys=True))


def pack(edit: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors by prefixed name, JSON description of maps and guards)."""
    tensors = {f"delta.{name}": tensor for name, tensor in edit.delta.items()}
    tensors |= {f"extra.{name}": tensor for name, tensor in edit.extra.items()}
    for i, text_map in enumerate(edit.maps):
        tensors |= {f"maps.{i}.left": text_map.left, f"maps.{i}.right": text_map.right}
    guards: list[Any] = []
    for i, guard in enumerate(edit.guards):
        if isinstance(guard, MapGuard):
            tensors |= {f"guards.{i}.left": guard.left, f"guards.{i}.right": guard.right}
            guards.append({"map": True})
        else:
            guards.append({"method": registry.to_json(guard.method), "erase": [c.to_json() for c in guard.erase]})
    return tensors, {"maps": [list(text_map.names) for text_map in edit.maps], "guards": guards}


def save(edit: Parts, path: str | os.PathLike[str]) -> None:
    """Write an edit to one file; raises `WriteError` and leaves no partial file."""
    tensors, description = pack(edit)
    if not tensors:  # some versions of safetensors refuse a file without tensors
        tensors = {"empty": torch.zeros(1)}
    header = {**edit.meta, "format": FORMAT, **description, "id": content_id(edit)}
    save_safetensors(path, tensors, {"efface": json.dumps(header)})


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of an edit.

    Raises `BadFile` for a damaged file and `BadEdit` for one that is no edit of this format.
    """
    tensors, meta = load_safetensors(path)
    if "efface" not in meta:
        raise BadEdit(f"{path} is a safetensors file but not an efface edit (a model? pass it as the model)")
    try:
        header = json.loads(meta["efface"])
        number = header["format"]
        if number != FORMAT:
            raise BadEdit(f"{path} has edit format {number!r}; this version reads {FORMAT}: update efface")
        fields = _unpack(tensors, header)
        same = header.get("id") == content_id(Parts(**fields))
    except (ValueError, KeyError, TypeError, AttributeError, BadInput, UnknownName) as error:
        raise BadEdit(f"{path} is not a valid edit: {type(error).__name__}: {error}") from error
    if not same:
        raise BadEdit(f"{path} is damaged: its content does not match its id")
    return fields


def _unpack(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    maps = tuple(
        TextMap(tuple(map(str, names)), tensors[f"maps.{i}.left"], tensors[f"maps.{i}.right"])
        for i, names in enumerate(header["maps"])
    )
    guards: list[Guard | MapGuard] = []
    for i, item in enumerate(header["guards"]):
        if item.get("map") is True:
            guards.append(MapGuard(tensors[f"guards.{i}.left"], tensors[f"guards.{i}.right"]))
            continue
        method = registry.from_json(item["method"])
        if not isinstance(method, InferenceTime):
            raise ValueError(f"{item['method']!r} is not an inference-time method")
        guards.append(Guard(method, tuple(Concept.from_json(concept) for concept in item["erase"])))
    own = {"maps", "guards", "id"}
    return {
        "delta": _under("delta.", tensors),
        "maps": maps,
        "guards": tuple(guards),
        "meta": {key: value for key, value in header.items() if key not in own},
        "extra": _under("extra.", tensors),
    }


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
