"""Files: atomic writing, safetensors, hashes of tensors."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadFile, WriteError

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit


def cache_folder() -> Path:
    """Return the folder of cached images and matrices: $EFFACE_HOME, else ~/.cache/efface."""
    return Path(os.environ.get("EFFACE_HOME") or Path.home() / ".cache" / "efface")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    Raises `WriteError` when the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent or ".")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], meta: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata to one safetensors file, atomically; raises `WriteError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if storage in storages else own  # safetensors refuses tensors that share memory
        storages.add(storage)
    with writing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=dict(meta or {}))
        except SafetensorError as error:
            raise WriteError(f"cannot write {path}: {error}") from error
        with open(temporary, "rb") as file:
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
    return {name: entry for name, entry in _header(Path(path)).items() if name != "__metadata__"}


def safetensors_meta(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the string metadata in the header of a safetensors file; raises `BadFile`."""
    return _header(Path(path)).get("__metadata__", {})


def _header(path: Path) -> dict[str, dict]:
    if path.is_dir():
        raise BadFile(f"{path} is a folder, expected a .safetensors file")
    if not path.is_file():
        raise BadFile(f"{path} does not exist")
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
        header = json.loads(raw)
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(f"{path} is truncated or not a safetensors file") from error
    expected, actual = 8 + size + end, path.stat().st_size
    if actual != expected:
        raise BadFile(f"{path} is truncated or damaged: {actual} bytes where its header says {expected}")
    return header


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
