"""LoRA: base class of the formats that hold two factors for each weight."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput
from efface.export import Export, header_of
from efface.exporting import reload
from efface.exporting.base import Base, Values
from efface.exporting.precision import Precision, fitting
from efface.exporting.report import Compare, Verified, Written
from efface.exports.lowrank.factors import Factors, factors, parts
from efface.util.files import save_safetensors
from efface.util.progress import progress
from efface.util.ranges import Ranges
from efface.util.untrusted import some


@dataclass(frozen=True)
class LoRA(Export):
    """Write two factors for each weight, and alpha = rank, so that their product is the difference.

    rank: directions kept of a text map, and of each dense difference; None keeps text maps as they are.
    error: instead of a rank, the share of the norm of a map or a dense difference that may be left out.
    dtype: precision of the factors; fp32 is exact.
    """

    rank: int | None = None
    error: float | None = None
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"

    RANGES: ClassVar[Ranges] = {"rank": "[1, 65536]", "error": "(0, 1)"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.error is not None:
            raise BadInput(f"give a rank or an error, not both (rank {self.rank}, error {self.error:g})")

    @abstractmethod
    def tensors(self, found: Mapping[str, Factors], base: Base) -> dict[str, Tensor]:
        """Return what the file holds for the factors of each weight."""

    def check(self, edit: Edit, base: Base) -> None:
        """Refuse weights that have no factors, and a dense difference without a rank or an error."""
        super().check(edit, base)
        if not base.architecture:
            raise BadEdit(f"no tool reads a LoRA of {base.title}; export to diffusers-folder or keep the edit")
        foreign = [name for name in edit.names if not name.startswith(f"{base.part}.")]
        if foreign:
            raise BadEdit(
                f"{self.name} holds weights of the {base.part} only, this edit also changes {some(foreign)}: export to "
                "single-file or diffusers-folder"
            )
        flat = [
            name for name in edit.names if len(base.shapes.get(name, (1, 1))) < 2 or not re.search(r"\.weight$", name)
        ]
        if flat:
            raise BadEdit(
                f"a LoRA changes matrices and convolutions only, this edit also changes {some(flat)}: export to diff, "
                "single-file or diffusers-folder, or leave them out first (in Python: edit.prune(without='*.bias'))"
            )
        if edit.delta and self.rank is None and self.error is None:
            raise BadInput(
                f"this edit has dense differences of {len(edit.delta)} weights, which a LoRA only comes near: say how "
                "near, as a rank (--rank 64) or as an error (--error 0.01), or export to diff, which is exact"
            )

    def write(self, edit: Edit, base: Base, values: Values, out: Path) -> Written:
        """Write the factors of every weight, all of one rank: smaller ones are filled up with zeros.

        diffusers loads files of several ranks with the wrong scale: older versions where there is no alpha, and up to
        0.42 kohya's attention layers, whose alphas it stores under names that it does not look up.
        """
        exact = edit.dense(values)
        names = [name for name in edit.names if bool(exact[name].any())]
        maps = parts(edit, values.values, self.rank, self.error)
        found = {
            name: factors(maps, edit.delta.get(name), name, values.values[name], self.rank, self.error)
            for name in progress(names, "weights", len(names))
        }
        rank = max((one.rank for one in found.values()), default=0)
        found = {name: one.padded(rank) for name, one in found.items()}
        dtype = getattr(torch, Precision[self.dtype].torch)
        tensors = {
            key: value if key.endswith(".alpha") else fitting(key, value, dtype)  # bf16 rounds numbers above 256
            for key, value in self.tensors(found, base).items()
        }
        save_safetensors(out, tensors, {**header_of(edit, base, self.name), **self.meta(found, base)})
        planned = {name: one.left_out / max(float(exact[name].norm()), 1e-30) for name, one in found.items()}
        return Written(planned, rank, self.dtype)

    def meta(self, found: Mapping[str, Factors], base: Base) -> dict[str, str]:
        """Return further entries of the file's header."""
        return {}

    def verify(self, edit: Edit, base: Base, values: Values, out: Path, written: Written, compare: Compare) -> Verified:
        """Rebuild the differences from the file as each tool reads it, and load it with diffusers."""
        return reload.verify(edit, base, values, out, written, compare, self.READERS)
