"""Provenance: the method, model, settings and versions that an edit was made with."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from efface import registry
from efface.concept import Concept

FORMAT = 1
PACKAGES = ("efface", "torch", "diffusers", "transformers")


@cache
def versions() -> dict[str, str]:
    """Return the versions of efface and of the libraries its results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found


@cache
def git() -> str:
    """Return the commit of the source tree this runs from ("+" when changed), or "" when it is no git clone."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 5, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def stamp(
    method: Any,
    base: Mapping[str, Any],
    erase: Sequence[Concept],
    preserve: Sequence[Concept],
    seed: int,
    cost: Mapping[str, float],
) -> dict[str, Any]:
    """Return the provenance of a new edit as JSON values.

    method: the dataclass instance that made it. base: from `Model.base`, for the weights it changes.
    cost: from `Meter.read`.
    """
    return {
        "format": FORMAT,
        "method": registry.name_of(type(method)),
        "fields": {f.name: registry.to_json(getattr(method, f.name)) for f in fields(method) if f.init},
        "preset": method.preset_name,
        "erase": [concept.to_json() for concept in erase],
        "preserve": [concept.to_json() for concept in preserve],
        "seed": seed,
        "base": dict(base),
        "versions": versions(),
        "git": git(),
        **cost,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def preserved(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the concepts that an edit was told to preserve, given its provenance.

    An edit that was combined, scaled or pruned preserves what its parts do. Edit files written before efface said
    "preserve" have these concepts under "keep".
    """
    names, left = [], [meta]  # a sum of many edits is nested too deep for recursion
    while left:
        part = left.pop()
        if "op" in part:  # a pruning written then has patterns of weights under "keep"
            left += reversed(part.get("parts", ()))
        else:
            names += [concept["name"] for concept in part.get("preserve", part.get("keep", ()))]
    return tuple(dict.fromkeys(names))
