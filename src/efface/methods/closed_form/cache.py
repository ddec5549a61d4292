"""Cache of matrices that are costly to compute: in memory, and on disk under the cache folder."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from efface.errors import EffaceError
from efface.util.files import cache_folder, load_safetensors, save_safetensors

LIMIT = 8  # matrices in memory
_memory: OrderedDict[str, Tensor] = OrderedDict()


def remembered(key: str, make: Callable[[], Tensor], disk: bool = False) -> Tensor:
    """Return the matrix of a key from memory or, if `disk`, from the cache folder; else compute it.

    key: 64 hex digits that stand for everything the matrix depends on. A cache folder that cannot be read or
    written is ignored.
    """
    if key in _memory:
        _memory.move_to_end(key)
        return _memory[key]
    path = folder() / f"{key}.safetensors"
    value = _read(path) if disk else None
    if value is None:
        value = make()
        if disk:
            _write(path, value)
    _memory[key] = value
    while len(_memory) > LIMIT:
        _memory.popitem(last=False)
    return value


def forget() -> None:
    """Empty the memory (not the disk)."""
    _memory.clear()


def folder() -> Path:
    """Return where matrices are stored on disk: "gram" in `cache_folder()`."""
    return cache_folder() / "gram"


def _read(path: Path) -> Tensor | None:
    try:
        return load_safetensors(path)[0]["matrix"] if path.is_file() else None
    except (EffaceError, KeyError):  # damaged, or another file: compute it again
        return None


def _write(path: Path, value: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_safetensors(path, {"matrix": value})
    except (EffaceError, OSError):
        return
