"""Say what a file or folder is, and whether it fits a model. Without a model only headers are read, without torch."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.digits.classes import CLASSES
from efface.errors import BadFile, BadInput
from efface.inspection import edits, models, names
from efface.inspection.summary import Summary
from efface.util.files import PICKLES, check_safetensors, safetensors_meta
from efface.util.untrusted import some

KNOWN = "an edit, key or finding of efface, a record, a LoRA, full differences, a checkpoint, a diffusers folder"
FITTING = ("edit", "LoRA", "full differences")


def inspect(path: str | os.PathLike[str], model: Any = "") -> Summary:
    """Return what a file or folder is.

    model: a name or path, a `Model` or a pipeline that an edit, LoRA or file of differences may fit; "" for none.
    Raises `BadFile`, `BadEdit` and `BadModel` for what is damaged or of no kind that is known.

    >>> print(inspect("church.safetensors").made["erase"])
    """
    path = Path(path)
    found = models.folder(path) if path.is_dir() else _file(path)
    if model in ("", None):
        return found
    if found.kind not in FITTING:
        raise BadInput(f"{path} is a {found.kind}, which is not applied to a model: leave out the model")
    from efface.inspection.fit import fit  # needs torch

    fits, notes = fit(path, found, model)
    return replace(found, fits=fits, notes=(*found.notes, *notes))


def _file(path: Path) -> Summary:
    if path.suffix.lower() in (".json", ".jsonl") and path.is_file():
        return edits.record(path)
    if path.is_file() and path.suffix.lower() not in (".safetensors", *PICKLES):
        raise BadFile(f"{path} is of no kind that is known by its name: known are {KNOWN}")
    entries, meta = check_safetensors(path), safetensors_meta(path)
    if "efface" in meta:
        return edits.edit(path, entries, meta["efface"])
    if "efface-finding" in meta:
        return edits.finding(path, entries, meta["efface-finding"])
    if "efface-run" in meta:
        return Summary("state of a training, to resume it", str(path), path.stat().st_size)
    if meta.get("dataset") in CLASSES:
        return Summary("digits model", str(path), path.stat().st_size, f"digits:{meta['dataset']}")
    if any(names.role(key)[1] for key in entries):
        return models.lora(path, entries, meta)
    found = models.checkpoint(path, entries, meta) or models.part(path, entries, meta)
    if found is None:
        raise BadFile(f"{path} holds tensors of no kind that is known ({some(list(entries))}): known are {KNOWN}")
    return found


__all__ = ["Summary", "inspect"]
