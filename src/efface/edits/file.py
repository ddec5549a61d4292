"""Edit files: one safetensors file with the tensors, and the provenance as JSON in its header."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.edits.check import check_provenance
from efface.edits.guard import Guard, InferenceTime, MapGuard
from efface.edits.parts import Parts, TextMap
from efface.edits.provenance import FORMAT
from efface.errors import BadEdit, BadInput, UnknownName
from efface.util import untrusted
from efface.util.files import load_safetensors, save_safetensors, sha256_tensors, sha256_text
from efface.util.untrusted import shorten


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
    """Write an edit to one file; raises `WriteError` and leaves no partial file.

    Raises `BadEdit` for a combination of so many edits that its provenance is nested deeper than is read.
    """
    tensors, description = pack(edit)
    if not tensors:  # some versions of safetensors refuse a file without tensors
        tensors = {"empty": torch.zeros(1)}
    header = {**edit.meta, "format": FORMAT, **description, "id": content_id(edit)}
    if untrusted.depth(header) > untrusted.MAX_DEPTH:
        raise BadEdit(f"cannot write {path}: it combines too many edits; add them up in groups, then the groups")
    save_safetensors(path, tensors, {"efface": json.dumps(header)})


def _guess(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Return what a file that is no edit seems to be."""
    if "efface-finding" in meta:
        return "it is a finding of an attack"
    if any("lora" in name for name in tensors):
        return "it is a LoRA; give the edit that it was exported from"
    return "a model? pass it as the model"


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of an edit.

    Raises `BadFile` for a damaged file and `BadEdit` for one that is no edit of this format.
    """
    tensors, meta = load_safetensors(path)
    if "efface" not in meta:
        raise BadEdit(f"{path} is a safetensors file but not an efface edit: {_guess(tensors, meta)}")
    header = untrusted.parse(meta["efface"], f"{path} is not a valid edit: its header", BadEdit)
    try:
        number = header["format"]
        if number != FORMAT:
            raise BadEdit(f"{path} has edit format {shorten(repr(number))}; this version reads {FORMAT}: update efface")
        fields = unpack(tensors, header)
        check_provenance(fields["meta"])
        same = header.get("id") == content_id(Parts(**fields))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        BadInput,
        UnknownName,
    ) as error:
        raise BadEdit(f"{path} is not a valid edit: {type(error).__name__}: {shorten(str(error), 300)}") from error
    if not same:
        raise BadEdit(f"{path} is damaged: its content does not match its id")
    return fields


def unpack(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an edit from what `pack` returned; what else the header holds is its provenance.

    Raises `ValueError`, `LookupError`, `TypeError`, `BadInput` or `UnknownName` for anything else.
    """
    if not all(isinstance(header[name], list) for name in ("maps", "guards")):
        raise ValueError("its maps and guards are no lists")
    maps = tuple(TextMap(_names(names), *_factors(tensors, f"maps.{i}")) for i, names in enumerate(header["maps"]))
    guards: list[Guard | MapGuard] = []
    for i, item in enumerate(header["guards"]):
        if item.get("map") is True:
            guards.append(MapGuard(*_factors(tensors, f"guards.{i}")))
            continue
        method = registry.from_json(item["method"])
        if not isinstance(method, InferenceTime):
            raise ValueError(f"{shorten(str(item['method']))} is not an inference-time method")
        guards.append(Guard(method, tuple(Concept.from_json(concept) for concept in item["erase"])))
    own = {"maps", "guards", "id"}
    delta = _under("delta.", tensors)
    for name, tensor in delta.items():
        _check_finite(name, tensor)
    return {
        "delta": delta,
        "maps": maps,
        "guards": tuple(guards),
        "meta": {key: value for key, value in header.items() if key not in own},
        "extra": _under("extra.", tensors),
    }


def _names(names: Any) -> tuple[str, ...]:
    if not untrusted.is_texts(names):
        raise ValueError("a map names no weights")
    return tuple(names)


def _factors(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return the factors of a map, (dim r) and (r dim)."""
    left, right = tensors[f"{name}.left"], tensors[f"{name}.right"]
    if left.dim() != 2 or right.shape != left.mT.shape:
        raise ValueError(f"{name} has factors of shape {list(left.shape)} and {list(right.shape)}")
    _check_finite(name, left, right)
    return left, right


def _check_finite(name: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
            raise ValueError(f"{shorten(name)} has values that are not finite numbers")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
