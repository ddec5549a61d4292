"""Full differences of weights and biases, for ComfyUI and A1111: exact for any edit, and large."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit
from efface.export import Export, header_of
from efface.exporting import reload
from efface.exporting.base import Base, Values
from efface.exporting.kohya import key_of, version
from efface.exporting.precision import Precision, fitting
from efface.exporting.report import Compare, Verified, Written
from efface.exporting.tools import TOOLS, name_in
from efface.util.files import save_safetensors
from efface.util.untrusted import some

ENDS = {"weight": "diff", "bias": "diff_b"}


@dataclass(frozen=True)
class Difference(Export):
    """Write ".diff" for a weight and ".diff_b" for a bias, under kohya's names, or PEFT's for FLUX and SD3.

    dtype: precision of the differences; fp32 is exact.
    """

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"

    READERS: ClassVar[tuple[str, ...]] = ("comfyui", "a1111")

    def __post_init__(self) -> None:
        super().__post_init__()

    def tools(self, base: Base) -> tuple[str, ...]:
        """Return the tools that read full differences of an architecture."""
        return self.READERS if base.architecture in ("sd", "sdxl") else ("comfyui",)

    def readers(self, edit: Edit, base: Base) -> tuple[str, ...]:
        """Return the names of the tools."""
        return tuple(TOOLS[tool].title for tool in self.tools(base))

    def check(self, edit: Edit, base: Base) -> None:
        """Refuse weights that no tool reads."""
        super().check(edit, base)
        if not base.architecture:
            raise BadEdit(f"no tool reads differences of {base.title}; export to diffusers-folder or keep the edit")
        foreign = [
            name
            for name in edit.names
            if not name.startswith(f"{base.part}.") or name.rpartition(".")[2] not in ENDS or not self.key(name, base)
        ]
        if foreign:
            raise BadEdit(
                f"{self.name} holds weights and biases of the {base.part} only, this edit also changes "
                f"{some(foreign)}: export to single-file or diffusers-folder"
            )

    def key(self, name: str, base: Base) -> str:
        """Return the name of a weight's or bias's module in the file."""
        if base.architecture in ("sd", "sdxl"):
            return key_of(name, base)
        return name_in("peft", base.architecture, name.removeprefix(f"{base.part}.").rpartition(".")[0], {})

    def write(self, edit: Edit, base: Base, values: Values, out: Path) -> Written:
        """Write the differences that are not zero."""
        dtype = getattr(torch, Precision[self.dtype].torch)
        tensors: dict[str, Tensor] = {}
        for name, value in edit.dense(values).items():
            if bool(value.any()):
                key = f"{self.key(name, base)}.{ENDS[name.rpartition('.')[2]]}"
                tensors[key] = fitting(key, value, dtype)
        for key in [key for key in tensors if key.endswith(".diff_b")]:
            module = key.removesuffix(".diff_b")
            if f"{module}.diff" not in tensors and self.tools(base) == self.READERS:  # A1111 reads no bias alone
                tensors[f"{module}.diff"] = torch.zeros(self._shape(module, base), dtype=dtype)
        meta = version(base) if base.architecture in ("sd", "sdxl") else {}
        save_safetensors(out, tensors, {**header_of(edit, base, self.name), **meta})
        return Written(dtype=self.dtype)

    def _shape(self, key: str, base: Base) -> tuple[int, ...]:
        return next(
            shape for name, shape in base.shapes.items() if name.endswith(".weight") and self.key(name, base) == key
        )

    def verify(self, edit: Edit, base: Base, values: Values, out: Path, written: Written, compare: Compare) -> Verified:
        """Read the differences as each tool does and compare them with the edit's."""
        return reload.verify(edit, base, values, out, written, compare, self.tools(base))


__all__ = ["Difference"]
