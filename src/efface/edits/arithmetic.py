"""Arithmetic of edits: sums, differences, scaling and pruning.

Text maps with the same names and the same right factor are merged, zero terms are dropped and maps are sorted, so
that a + b equals b + a and a - a is the empty edit. Each side is merged by itself before they are added: sums of
three or more floats depend on their order, sums of two do not.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor

from efface.edits.guard import MapGuard
from efface.edits.parts import Parts, TextMap
from efface.errors import BadEdit, BadInput
from efface.util.files import sha256_tensors
from efface.util.ranges import short

E = TypeVar("E", bound=Parts)
BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}  # of a UNet; an edit may name its own


def add(a: E, b: E) -> E:
    """Return a + b."""
    meta = _joined(a, b, "+")
    delta: dict[str, Tensor] = {}
    for name in sorted({*a.delta, *b.delta}):
        terms = [_wide(edit.delta[name]) for edit in (a, b) if name in edit.delta]
        if len({term.shape for term in terms}) > 1:
            raise BadEdit(f"the edits are for different architectures: {name} is {[list(t.shape) for t in terms]}")
        delta[name] = terms[0] + terms[1] if len(terms) == 2 else terms[0]
    guards = tuple(dict.fromkeys(a.guards + b.guards))
    return replace(
        a,
        delta=_nonzero(delta),
        maps=_merged((*_merged(a.maps), *_merged(b.maps))),  # at most two terms each, and those commute
        guards=guards,
        meta=meta,
        extra={**b.extra, **a.extra},
    )


def subtract(a: E, b: E) -> E:
    """Return a - b; the guards of b must be among those of a."""
    left = list(a.guards)
    for guard in b.guards:
        if guard not in left:
            raise BadEdit("cannot subtract an edit with a guard that the other edit does not have")
        left.remove(guard)
    difference = add(replace(a, guards=()), scale(replace(b, guards=()), -1.0))
    return replace(difference, guards=tuple(left), meta=_joined(a, b, "-"))


def scale(edit: E, factor: float) -> E:
    """Return factor * edit."""
    if not math.isfinite(factor):
        raise BadInput(f"the scale of an edit must be a finite number, got {factor}")
    if edit.guards and factor not in (0.0, 1.0):
        raise BadEdit(
            f"a guard cannot be scaled: half of it is not half of its effect (scale {factor:g}; 0 and 1 work)"
        )
    if factor == 1.0:
        return edit
    meta = {"format": 1, "op": "*", "scale": factor, "parts": [edit.meta], "base": edit.meta.get("base", {})}
    if edit.meta.get("op") == "*":  # 2 * (3 * a) is 6 * a
        meta |= {"scale": factor * edit.meta["scale"], "parts": edit.meta["parts"]}
    if factor == 0.0:
        return replace(edit, delta={}, maps=(), guards=(), meta=meta)
    delta = {name: _wide(tensor) * factor for name, tensor in edit.delta.items()}
    maps = tuple(replace(text_map, left=text_map.left * factor) for text_map in edit.maps)
    return replace(edit, delta=_nonzero(delta), maps=_merged(maps), meta=meta)


def prune(edit: E, only: str | Iterable[str], without: str | Iterable[str]) -> E:
    """Return the edit restricted to some of its weights."""
    blocks = edit.meta.get("base", {}).get("blocks", BLOCKS)
    wanted, unwanted = _patterns(only), _patterns(without)
    for pattern in (*wanted, *unwanted):
        if not any(matches(name, pattern, blocks) for name in edit.names):
            raise BadInput(f"{pattern!r} matches none of the edit's {len(edit.names)} weights")

    def among(name: str, patterns: tuple[str, ...]) -> bool:
        return any(matches(name, pattern, blocks) for pattern in patterns)

    chosen = {name for name in edit.names if (not wanted or among(name, wanted)) and not among(name, unwanted)}
    maps = tuple(replace(m, names=tuple(n for n in m.names if n in chosen)) for m in edit.maps)
    meta = {"format": 1, "op": "prune", "only": list(wanted), "without": list(unwanted), "parts": [edit.meta]}
    return replace(
        edit,
        delta={name: tensor for name, tensor in edit.delta.items() if name in chosen},
        maps=_merged(m for m in maps if m.names),
        meta={**meta, "base": edit.meta.get("base", {})},
    )


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return one or several patterns as a tuple; raises `BadInput` for anything else."""
    found: Any = (given,) if isinstance(given, str) else given
    found = tuple(found) if isinstance(found, Iterable) else (None,)
    if not all(isinstance(one, str) for one in found):
        raise BadInput(f"patterns of weights are texts, got {short(given)}")
    return found


def matches(name: str, pattern: str, blocks: Mapping[str, str] = BLOCKS) -> bool:
    """Return whether a weight's name matches a block word, a part of the dotted name, or a glob.

    blocks: block words and the parts of names they stand for.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return f".{blocks.get(pattern, pattern)}." in f".{name}."


def as_guard(edit: E) -> E:
    """Return the edit as a guard on embeddings."""
    if edit.delta or not edit.maps:
        raise BadEdit("only an edit made of text maps alone can be a guard on the embeddings")
    names = {text_map.names for text_map in edit.maps}
    readers = edit.meta.get("base", {}).get("cross_attention")
    if len({frozenset(group) for group in names}) > 1 or (readers is not None and set(readers) != set(edit.names)):
        raise BadEdit("only an edit of every key and value projection of the text can be a guard on the embeddings")
    guard = MapGuard(torch.cat([m.left for m in edit.maps], 1), torch.cat([m.right for m in edit.maps], 0))
    return replace(edit, maps=(), guards=(*edit.guards, guard))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _nonzero(delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in delta.items() if bool(tensor.any())}


def _merged(maps: Iterable[TextMap]) -> tuple[TextMap, ...]:
    """Add maps that differ in their left factor only, drop zeros, sort by content."""
    groups: dict[tuple[frozenset[str], str], TextMap] = {}
    for text_map in maps:
        names = tuple(sorted(text_map.names))
        key = (frozenset(names), sha256_tensors({"right": text_map.right}))
        before = groups.get(key)
        left = text_map.left if before is None else before.left + text_map.left
        groups[key] = replace(text_map, names=names, left=left)
    nonzero = [text_map for text_map in groups.values() if bool(text_map.left.any()) and bool(text_map.right.any())]
    return tuple(sorted(nonzero, key=lambda m: (m.names, sha256_tensors({"left": m.left, "right": m.right}))))


def _joined(a: Parts, b: Parts, op: str) -> dict[str, Any]:
    """Return the provenance of a combination; raises `BadEdit` when both change a weight of different base models."""
    base_a, base_b = dict(a.meta.get("base", {})), dict(b.meta.get("base", {}))
    hashes_a, hashes_b = base_a.get("hashes", {}), base_b.get("hashes", {})
    wrong = sorted(name for name in hashes_a.keys() & hashes_b.keys() if hashes_a[name] != hashes_b[name])
    if wrong:
        raise BadEdit(f"the edits were made on different base models (they differ in {wrong[0]})")
    base = {**base_b, **base_a, "hashes": {**hashes_b, **hashes_a}}
    parts = [dict(a.meta), dict(b.meta)]
    if not base_a and not base_b:
        return {"format": 1, "op": op, "parts": parts}
    return {"format": 1, "op": op, "parts": parts, "base": base}
