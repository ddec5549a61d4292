"""A copy of a single-file checkpoint in the original layout, for ComfyUI, A1111 and `from_single_file`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from efface.exporting.base import Base
from efface.exports.copies.copy import Copy, write_config


@dataclass(frozen=True)
class SingleFile(Copy):
    """Copy a .safetensors checkpoint with the edited weights; everything else is the same, byte by byte."""

    READERS: ClassVar[tuple[str, ...]] = ("diffusers", "comfyui", "a1111")

    def __post_init__(self) -> None:
        super().__post_init__()

    def load(self, base: Base, out: Path, configs: Path) -> Any:
        """Return the copy's denoiser by diffusers' `from_single_file`."""
        where: dict[str, Any] = {"config": write_config(base, configs), "subfolder": base.part}
        kind: Any = base.kind
        return kind.from_single_file(str(out), **where, local_files_only=True, torch_dtype=torch.float32)


__all__ = ["SingleFile"]
