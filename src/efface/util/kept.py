"""Keep results that take long in the cache folder, under the hash of all that they depend on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError
from efface.util.files import cache_folder, load_safetensors, save_safetensors, sha256_tensors, sha256_text

if TYPE_CHECKING:
    from torch import Tensor


def kept(kind: str, about: Mapping[str, Any], make: Callable[[], dict[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """Return the tensors of a description from the cache folder; else make and keep them.

    kind: of the results, the name of their folder. about: JSON values for everything the result depends on, the version
    of the code that makes it included. A file that is damaged or cannot be read is made again; a folder that cannot be
    written is ignored.
    """
    text = json.dumps(about, sort_keys=True)
    path = cache_folder() / kind / f"{sha256_text(text)}.safetensors"
    found = _read(path, text)
    if found is None:
        found = make()
        _write(path, found, text)
    return found


def _read(path: Path, text: str) -> "dict[str, Tensor] | None":
    try:
        if not path.is_file():
            return None
        tensors, meta = load_safetensors(path)
    except (EffaceError, OSError):
        return None
    whole = meta.get("efface-about") == text and meta.get("efface-content") == sha256_tensors(tensors)
    return tensors if whole else None


def _write(path: Path, tensors: Mapping[str, "Tensor"], text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_safetensors(path, tensors, {"efface-about": text, "efface-content": sha256_tensors(tensors)})
    except (EffaceError, OSError):
        return


__all__ = ["kept"]
