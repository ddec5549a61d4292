"""A LoRA for ComfyUI and A1111, in the names of kohya's trainer; diffusers reads it too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit
from efface.exporting.base import Base
from efface.exporting.kohya import key_of, only_unets, version
from efface.exports.lowrank.factors import Factors
from efface.exports.lowrank.lora import LoRA


@dataclass(frozen=True)
class KohyaLoRA(LoRA):
    """Write "lora_unet_….lora_down.weight", lora_up and alpha; SDXL in the block names of its original layout."""

    READERS: ClassVar[tuple[str, ...]] = ("comfyui", "a1111", "diffusers")

    def __post_init__(self) -> None:
        super().__post_init__()

    def check(self, edit: Edit, base: Base) -> None:
        """Refuse architectures whose kohya names are passed over."""
        super().check(edit, base)
        only_unets(self.name, base, "diffusers-lora, which diffusers and ComfyUI read")
        nameless = [name for name in edit.names if not key_of(name, base)]
        if nameless:
            raise BadEdit(
                f"the original layout of {base.title} has no name for {nameless[0]}: export to diffusers-lora"
            )

    def meta(self, found: Mapping[str, Factors], base: Base) -> dict[str, str]:
        """Return what A1111 reads to list the file under the right version of the model."""
        rank = str(next(iter(found.values())).rank)
        return {**version(base), "ss_network_dim": rank, "ss_network_alpha": rank}

    def tensors(self, found: Mapping[str, Factors], base: Base) -> dict[str, Tensor]:
        """Return the factors, each with alpha = its rank."""
        tensors = {}
        for name, one in found.items():
            key, shape = key_of(name, base), base.shapes[name]
            tensors[f"{key}.lora_down.weight"] = one.down.reshape(one.rank, *shape[1:])
            tensors[f"{key}.lora_up.weight"] = one.up.reshape(*one.up.shape, *(1,) * (len(shape) - 2))
            tensors[f"{key}.alpha"] = torch.tensor(float(one.rank))
        return tensors


__all__ = ["KohyaLoRA"]
