"""A copy of a diffusers folder, for `from_pretrained`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from efface.exporting.base import Base
from efface.exports.copies.copy import Copy


@dataclass(frozen=True)
class DiffusersFolder(Copy):
    """Copy a diffusers folder with the edited weights; everything else is the same, byte by byte."""

    FOLDER: ClassVar[bool] = True
    READERS: ClassVar[tuple[str, ...]] = ("diffusers",)

    def __post_init__(self) -> None:
        super().__post_init__()

    def load(self, base: Base, out: Path, configs: Path) -> Any:
        """Return the copy's denoiser by diffusers' `from_pretrained`."""
        kind: Any = base.kind
        return kind.from_pretrained(str(out / base.part), local_files_only=True, torch_dtype=torch.float32)


__all__ = ["DiffusersFolder"]
