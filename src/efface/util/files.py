"""Files: atomic writing, safetensors, hashes of tensors."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadFile, BadInput, WriteError
from efface.util import temporary, untrusted
from efface.util.untrusted import shorten

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
MAX_HEADER = untrusted.MAX_BYTES  # the safetensors format's own limit
MAX_SIZE = 1 << 48  # of one dimension, or bytes of a file
BITS = {  # of one value, by type; the format's types of less than a byte are not read
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # as which weights are stored, unless quantised


def path_of(value: str | os.PathLike[str]) -> Path:
    """Return a path as one; raises `BadInput` for anything that is none."""
    if not isinstance(value, str | os.PathLike):
        raise BadInput(f"a path is a text or a Path, got {shorten(repr(value))}")
    return Path(value)


def cache_folder() -> Path:
    """Return the folder of cached images and matrices: $EFFACE_HOME, else ~/.cache/efface."""
    return Path(os.environ.get("EFFACE_HOME") or Path.home() / ".cache" / "efface")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`; on success it becomes `path`, on any failure it is removed.

    First removes what killed processes left in the folder, see `efface.util.temporary`.
    Raises `WriteError` when the folder is missing or not writable, or the disk is full.
    """
    path = path_of(path)
    try:
        with temporary.beside(path) as folder:
            own = folder / path.name
            yield own
            os.chmod(own, 0o666 & ~umask())  # some libraries make files private
            os.replace(own, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def umask() -> int:
    """Return the process's mask of permissions for new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], meta: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata to one safetensors file, atomically; raises `WriteError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        plain[name] = whole.clone() if storage in storages else whole  # safetensors refuses tensors that share memory
        storages.add(storage)
    with writing(path) as own:
        try:
            save_file(plain, own, metadata=dict(meta or {}))
        except SafetensorError as error:
            raise WriteError(f"cannot write {path}: {error}") from error
        with open(own, "rb") as file:
            os.fsync(file.fileno())  # a full disk shows here at the latest


def load_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Read (tensors, metadata); raises `BadFile` for a file that is missing, damaged, or of another format."""
    check_safetensors(path)
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file to read single tensors inside the block; raises `BadFile`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is truncated or not a safetensors file: {' '.join(str(error).split())}") from error


def check_safetensors(path: str | os.PathLike[str]) -> dict[str, dict]:
    """Read the header of a safetensors file as {name: {dtype, shape, data_offsets}} and check it against the size.

    Loads neither torch nor the tensors. Raises `BadFile`.
    """
    return {name: entry for name, entry in _header(path_of(path)).items() if name != "__metadata__"}


def safetensors_meta(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the string metadata in the header of a safetensors file; raises `BadFile`."""
    return _header(Path(path)).get("__metadata__", {})


def _header(path: Path) -> dict[str, dict]:
    if path.is_dir():
        raise BadFile(f"{path} is a folder, expected a .safetensors file")
    if not path.is_file():
        raise BadFile(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.suffix.lower() in PICKLES:
        raise BadFile(
            f"{path} is a pickle file, which can run code when opened: convert it to .safetensors first "
            "(on a machine you trust) and pass that"
        )
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= MAX_HEADER:
                raise BadFile(f"{path} is not a safetensors file")
            raw = file.read(size)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    header = untrusted.parse(raw, f"{path} is truncated or not a safetensors file: its header")
    meta = header.get("__metadata__", {})
    if not isinstance(meta, dict) or not untrusted.is_texts(list(meta.values())):
        raise BadFile(f"{path} is truncated or not a safetensors file: its metadata are no texts by name")
    end = _end(path, {name: entry for name, entry in header.items() if name != "__metadata__"})
    expected, actual = 8 + size + end, path.stat().st_size
    if actual != expected:
        raise BadFile(f"{path} is truncated or damaged: {actual} bytes where its header says {expected}")
    return header


def _end(path: Path, entries: Mapping[str, Any]) -> int:
    """Return the bytes that tensors take; raises `BadFile` unless they lie one behind the other, each of its size."""
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        try:
            (begin, end), bits = entry["data_offsets"], BITS[entry["dtype"]]
            numbers = [begin, end, *entry["shape"]]
        except (LookupError, TypeError, ValueError) as error:
            raise BadFile(
                f"{path} is truncated or not a safetensors file: no type, shape and place of {shorten(name)}"
            ) from error
        if len(numbers) > 2 + 16 or not all(untrusted.is_count(number, 0, MAX_SIZE) for number in numbers):
            raise BadFile(f"{path} is damaged: the shape or place of {shorten(name)} is {shorten(str(numbers))}")
        if math.prod(entry["shape"]) * bits != (end - begin) * 8:
            raise BadFile(f"{path} is damaged: {shorten(name)} is {entry['shape']} but has {end - begin} bytes")
        places.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise BadFile(f"{path} is damaged: {shorten(name)} begins at byte {begin}, expected {at}")
        at = end
    return at


def sha256_tensors(tensors: Mapping[str, "Tensor"]) -> str:
    """Hash names, shapes and values (as fp32, so that the storage type does not matter) to 64 hex digits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_floating_point():
            tensor = tensor.to("cpu", torch.float32)
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hash a string to 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()
