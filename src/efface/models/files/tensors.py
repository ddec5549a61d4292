"""Read a few tensors out of a checkpoint on disk, and write a copy in which a few tensors have other values.

A checkpoint is a diffusers folder or one .safetensors file in Stable Diffusion's original layout. Nothing but the
tensors asked for is read, and copies are made in blocks.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efface.errors import BadEdit, BadFile, BadModel, WriteError
from efface.util.files import check_safetensors, opened, writing

BLOCK = 1 << 24  # bytes copied at once
ATTENTION = re.compile(r"(down|up|mid)_block(?:s\.(\d+))?\.attentions\.(\d+)\.(.+)")

Value = Callable[[str, Tensor], Tensor]  # (weight name, old value) -> new value


class Place(NamedTuple):
    """Say where a weight is: in which file, under which key."""

    file: Path
    key: str


def original_key(name: str, layers: int) -> str:
    """Return the original key of a weight inside a UNet's attention blocks ("unet.down_blocks.0.attentions.0.…").

    layers: residual blocks per level. Raises `BadEdit` for any other weight.
    """
    match = ATTENTION.fullmatch(name.removeprefix("unet."))
    if match is None or not name.startswith("unet."):
        raise BadEdit(f"a single-file checkpoint can be edited in its attention weights only, not in {name}")
    way, block, number, rest = match[1], int(match[2] or 0), int(match[3]), match[4]
    stage = {
        "down": f"input_blocks.{1 + block * (layers + 1) + number}.1",
        "up": f"output_blocks.{block * (layers + 1) + number}.1",
        "mid": "middle_block.1",
    }[way]
    return f"model.diffusion_model.{stage}.{rest}"


def places(where: Path, names: Sequence[str], layers: int) -> dict[str, Place]:
    """Find weights in a checkpoint by their names ("unet.….weight"); raises `BadModel` when one is missing.

    layers: residual blocks per level of the UNet.
    """
    if where.is_file():
        header = check_safetensors(where)
        found = {name: Place(where, original_key(name, layers)) for name in names}
        found = {name: place for name, place in found.items() if place.key in header}
    else:
        found = {}
        for part in sorted({name.partition(".")[0] for name in names}):
            for file in weight_files(where / part):
                keys = check_safetensors(file)
                found |= {f"{part}.{key}": Place(file, key) for key in keys if f"{part}.{key}" in set(names)}
    missing = [name for name in names if name not in found]
    if missing:
        raise BadModel(f"{where} has no weight {missing[0]}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the .safetensors files of one part of a diffusers folder, without its other variants.

    Raises `BadFile` when there are none.
    """
    every = sorted(folder.glob("*.safetensors"))
    plain = [file for file in every if file.stem.count(".") == 0]  # not model.fp16.safetensors
    shards = [file for file in plain if re.search(r"-\d+-of-\d+$", file.stem)]
    whole = [file for file in plain if file not in shards]
    chosen = whole[:1] or shards or every[:1]
    if not chosen:
        raise BadFile(f"{folder} holds no .safetensors file")
    return chosen


def read(where: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of the weights at some places, one file after the other."""
    for file in dict.fromkeys(place.file for place in where.values()):
        with opened(file) as tensors:
            for name, place in where.items():
                if place.file == file:
                    yield name, tensors.get_tensor(place.key)


def write_copy(where: Path, out: Path, at: Mapping[str, Place], value: Value, meta: Mapping[str, str]) -> None:
    """Copy a checkpoint, file or folder, with new values for the weights at some places; all or nothing.

    meta: strings added to the header of the changed files. Raises `WriteError`; `out` must not exist as a folder.
    """
    if where.is_file():
        with writing(out) as temporary:
            _copy_file(where, temporary, {name: place.key for name, place in at.items()}, value, meta)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WriteError(f"cannot write {out}: it exists already")
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}.", suffix=".tmp", dir=out.parent))
        changed = {place.file for place in at.values()}
        for file in sorted(path for path in where.rglob("*") if path.is_file()):
            copy = temporary / file.relative_to(where)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file in changed:
                keys = {name: place.key for name, place in at.items() if place.file == file}
                _copy_file(file, copy, keys, value, meta)
            else:
                shutil.copyfile(file, copy)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        os.replace(temporary, out)
        temporary = None
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(source: Path, target: Path, keys: Mapping[str, str], value: Value, meta: Mapping[str, str]) -> None:
    """Copy one safetensors file block by block, then write the new values over the old ones."""
    entries = check_safetensors(source)
    with open(source, "rb") as old, open(target, "wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"] = {**header.get("__metadata__", {}), **meta}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # data starts at a multiple of eight
        new.write(len(raw).to_bytes(8, "little") + raw)
        shutil.copyfileobj(old, new, BLOCK)
        for name, before in read({name: Place(source, key) for name, key in keys.items()}):
            after = value(name, before).to(before.dtype).contiguous()
            new.seek(8 + len(raw) + entries[keys[name]]["data_offsets"][0])
            new.write(after.view(-1).view(torch.uint8).numpy().data)
        new.flush()
        os.fsync(new.fileno())
