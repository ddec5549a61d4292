"""A LoRA for diffusers' `load_lora_weights`, in PEFT's names; of FLUX and SD3 for ComfyUI as well."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from efface.edits.edit import Edit
from efface.export import Export
from efface.exporting.base import Base
from efface.exporting.tools import name_in
from efface.exports.lowrank.factors import Factors
from efface.exports.lowrank.lora import LoRA


@dataclass(frozen=True)
class DiffusersLoRA(LoRA):
    """Write "unet.….lora_A.weight" or "transformer.….lora_A.weight", and lora_B."""

    READERS: ClassVar[tuple[str, ...]] = ("diffusers",)

    def __post_init__(self) -> None:
        super().__post_init__()

    def readers(self, edit: Edit, base: Base) -> tuple[str, ...]:
        """Return diffusers, and ComfyUI for the architectures whose PEFT names it maps."""
        own = Export.readers(self, edit, base)
        return (*own, "ComfyUI") if base.architecture in ("sd3", "flux") else own

    def tensors(self, found: Mapping[str, Factors], base: Base) -> dict[str, Tensor]:
        """Return the factors; without an alpha, the scale is 1."""
        tensors = {}
        for name, one in found.items():
            key = name_in("peft", base.architecture, name.removeprefix(f"{base.part}.").removesuffix(".weight"), {})
            shape = base.shapes[name]
            tensors[f"{key}.lora_A.weight"] = one.down.reshape(one.rank, *shape[1:])
            tensors[f"{key}.lora_B.weight"] = one.up.reshape(*one.up.shape, *(1,) * (len(shape) - 2))
        return tensors


__all__ = ["DiffusersLoRA"]
