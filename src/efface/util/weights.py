"""Weights of networks that judge images, from the user's files: safetensors, or files that torchvision publishes."""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import BadFile
from efface.util.files import PICKLES, load_safetensors

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = (  # of torchvision; the end of a name is the beginning of the file's sha256
    "alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth",
)  # fmt: skip


def torchvision_cache() -> Path:
    """Return the folder in which torchvision keeps what it downloads: $TORCH_HOME, by default ~/.cache/torch."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def find_weights(given: str, published: str) -> Path | None:
    """Return the user's file, or else torchvision's in its cache; None without either. Nothing is downloaded."""
    path = Path(given) if given else torchvision_cache() / published
    return path if path.is_file() else None


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's names and files, 64 hex digits. Raises `BadFile`."""
    try:
        found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        parts = [
            (str(one.relative_to(path)), _sha256(one, one.stat().st_mtime_ns, one.stat().st_size)) for one in found
        ]
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    return parts[0][1] if path.is_file() else hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _sha256(path: Path, _modified: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(path: Path) -> "dict[str, Tensor]":
    """Read a network's tensors by name.

    A .safetensors file of any origin; a pickle only when it is one that torchvision publishes, by its sha256, and then
    as plain tensors. Raises `BadFile`.
    """
    if path.suffix.lower() not in PICKLES:
        return load_safetensors(path)[0]
    if path.name not in PUBLISHED:
        raise BadFile(
            f"{path} is a pickle file, which can run code when opened: convert it to .safetensors first, "
            f"or give the file that torchvision publishes, under its name ({', '.join(PUBLISHED)})"
        )
    digest = sha256_file(path)
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise BadFile(f"{path} is damaged, or not the file that torchvision publishes: its sha256 is {digest}")
    from torch.hub import load_state_dict_from_url

    folder, name = str(path.parent), path.name
    try:  # the file is there, so nothing is fetched
        return load_state_dict_from_url(f"file:///{name}", folder, "cpu", False, file_name=name, weights_only=True)
    except Exception as error:  # of pickle and zip
        raise BadFile(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


__all__ = ["PUBLISHED", "find_weights", "load_weights", "sha256_file", "torchvision_cache"]
