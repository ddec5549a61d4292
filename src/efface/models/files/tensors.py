"""Read some tensors of a checkpoint on disk, and write a copy in which some have other values.

A checkpoint is a diffusers folder or one .safetensors file. Only the requested tensors are read, and copies
are made in blocks.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadFile, WriteError
from efface.util import temporary, untrusted
from efface.util.files import check_safetensors, opened, writing

BLOCK = 1 << 24  # bytes copied at once

Value = Callable[[str, Tensor], Tensor]  # (weight name, old value) -> new value
View = Literal["whole", "q", "k", "v", "transposed", "matrix", "swapped"]
VIEWS: Mapping[View, Callable[[Tensor], Tensor]] = {  # the weight as a view of the stored tensor, but for "swapped"
    "whole": lambda stored: stored,
    "q": lambda stored: stored.chunk(3)[0],
    "k": lambda stored: stored.chunk(3)[1],
    "v": lambda stored: stored.chunk(3)[2],
    "transposed": lambda stored: stored.T,
    "matrix": lambda stored: stored[:, :, 0, 0] if stored.dim() == 4 else stored,  # a convolution of 1 × 1
    "swapped": lambda stored: torch.cat(stored.chunk(2)[::-1]),  # second half first; its own inverse
}


class Place(NamedTuple):
    """Hold the place of a weight: file, key, and its view of the stored tensor."""

    file: Path
    key: str
    view: View = "whole"


def shape_of(place: Place, stored: Sequence[int]) -> list[int] | None:
    """Return a weight's shape as its place shows it, None when the stored shape has no such view."""
    if place.view == "transposed" and len(stored) != 2:
        return None
    try:
        return list(VIEWS[place.view](torch.empty(*stored, device="meta")).shape)
    except (IndexError, RuntimeError):  # a tensor too small for a third of it
        return None


def weight_files(folder: Path) -> list[Path]:
    """Return the .safetensors files of one part of a diffusers folder, without variants such as fp16.

    Raises `BadFile` when there are none.
    """
    sets: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        sets.setdefault(re.sub(r"-\d+-of-\d+", "-of", file.stem), []).append(file)
    if not sets:
        raise BadFile(f"{folder} has no .safetensors file")
    plain = [name for name in sets if "." not in name]  # not model.fp16.safetensors
    whole = [name for name in plain if not name.endswith("-of")]
    return sets[(whole or plain or list(sets))[0]]


def read(where: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of the weights at some places, file by file; raises `BadFile`."""
    for file in dict.fromkeys(place.file for place in where.values()):
        with opened(file) as tensors:
            for name, place in where.items():
                if place.file == file:
                    yield name, VIEWS[place.view](tensors.get_tensor(place.key))


def write_copy(where: Path, out: Path, at: Mapping[str, Place], value: Value, meta: Mapping[str, str]) -> None:
    """Copy a checkpoint, file or folder, with new values for the weights at some places; all or nothing.

    meta: strings added to the header of the changed files. Raises `WriteError`; `out` must not exist as a folder.
    """
    if where.is_file():
        with writing(out) as own:
            _copy_file(where, own, at, value, meta)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WriteError(f"cannot write {out}: it exists already")
    try:
        with temporary.beside(out) as folder:
            _copy_folder(where, folder / out.name, at, value, meta)
            os.replace(folder / out.name, out)
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from error


def _copy_folder(source: Path, target: Path, at: Mapping[str, Place], value: Value, meta: Mapping[str, str]) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        own = {name: place for name, place in at.items() if place.file == file}
        if own:
            _copy_file(file, copy, own, value, meta)
        else:
            shutil.copyfile(file, copy)


def _copy_file(source: Path, target: Path, at: Mapping[str, Place], value: Value, meta: Mapping[str, str]) -> None:
    """Copy one safetensors file in blocks, then overwrite the changed values."""
    entries = check_safetensors(source)
    with open(source, "rb") as old, open(target, "wb") as new:
        header = untrusted.parse(old.read(int.from_bytes(old.read(8), "little")), f"the header of {source}")
        header["__metadata__"] = {**header.get("__metadata__", {}), **meta}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # data starts at a multiple of eight
        new.write(len(raw).to_bytes(8, "little") + raw)
        shutil.copyfileobj(old, new, BLOCK)
        for key, stored in read({place.key: Place(source, place.key) for place in at.values()}):
            after = stored.clone().contiguous()
            for name, place in at.items():
                if place.key == key:  # several weights may lie in one stored tensor
                    part = VIEWS[place.view](after)
                    changed = value(name, part.clone())
                    if place.view == "swapped":
                        after.copy_(VIEWS[place.view](changed))
                    else:
                        part.copy_(changed)
            new.seek(8 + len(raw) + entries[key]["data_offsets"][0])
            new.write(after.view(-1).view(torch.uint8).numpy().data)
        new.flush()
        os.fsync(new.fileno())
