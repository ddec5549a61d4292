"""Single-file checkpoints in the original layout, loaded offline.

diffusers reads the configuration from the hub; here each family derives it from the tensors' shapes.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from efface.errors import BadFile, BadModel
from efface.models.family import Family, known_families
from efface.models.files.checkpoint import Checkpoint
from efface.models.files.t5_tokenizer import find_t5
from efface.models.files.tensors import Place
from efface.models.files.tokenizer import find_tokenizers
from efface.models.files.unused import is_unused
from efface.util.files import check_safetensors, safetensors_meta
from efface.util.untrusted import some

Prediction = Literal["", "epsilon", "v_prediction"]


@dataclass(frozen=True, eq=False)
class SingleFile(Checkpoint):
    """View a .safetensors file in the original layout of a family.

    family: the family that reads the file.
    shapes: the stored tensors' shapes.
    tokenizer: a folder with the vocabulary, or None to look for it.
    """

    family: type[Family] = field(repr=False)
    shapes: Mapping[str, list[int]] = field(repr=False)
    tokenizer: str | os.PathLike[str] | None = None

    @classmethod
    def open(
        cls, path: Path, tokenizer: str | os.PathLike[str] | None = None, prediction: Prediction = ""
    ) -> "SingleFile":
        """Open a file.

        tokenizer: a folder with vocab.json and merges.txt (or tokenizer.json); by default CLIP's, see
        `find_tokenizers`. prediction: what the denoiser predicts; by default from the header (modelspec), else the
        family's usual one. Raises `BadFile` and `BadModel`.
        """
        shapes = {name: entry["shape"] for name, entry in check_safetensors(path).items()}
        meta = safetensors_meta(path)
        if "efface" in meta:
            raise BadModel(
                f"{path} is an efface edit, not a model: give the model it was made on, and this as the edit"
            )
        family = next((family for family in known_families() if family.reads(shapes)), None)
        if family is None:
            raise BadFile(f"{path} is not a Stable Diffusion checkpoint: its tensors are of no known model family")
        try:
            configs = family.configs(shapes, meta, prediction)
        except BadModel as error:
            raise BadModel(f"{path} cannot be read: {error}") from error
        except (LookupError, ValueError) as error:
            raise BadModel(f"{path} is not a complete model: no tensor {error}") from error
        return cls(path, configs["model_index"], configs, family, shapes, tokenizer)

    def find(self, names: Sequence[str]) -> dict[str, Place]:
        """Return the places of the weights that the checkpoint has, by name."""
        stored = {name: self.family.original_key(name, self.configs) for name in names}
        return {name: Place(self.path, *one) for name, one in stored.items() if one.key in self.shapes}

    def strays(self, names: Collection[str]) -> list[str]:
        """Return the keys of stored tensors that are neither among these weights nor known to be unused."""
        own = {self.family.original_key(name, self.configs).key for name in names}
        parts = {name.partition(".")[0] for name in names}
        return [key for key, part in self._homes.items() if key not in own and part in parts]

    def __post_init__(self) -> None:
        """Raise `BadModel` for a configuration that cannot be one, and for a tensor of no part of the model."""
        super().__post_init__()
        foreign = [key for key, part in self._homes.items() if not part]
        if foreign:
            raise BadModel(f"{self.path} does not fit: no {self.family.TITLE} has a weight {some(foreign)}")

    @cached_property
    def _homes(self) -> dict[str, str]:
        """Return the part of every stored tensor that is read, "" for one of no part."""
        unread = self.family.unread
        keys = [key for key in self.shapes if not is_unused(key) and not unread(key, self.configs)]
        return {key: self.family.part_of(key, self.configs) for key in keys}

    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers, found on this machine or the hub; raises `BadModel` when there are none."""
        wanted = {name: config for name, config in self.configs.items() if name.startswith("tokenizer")}
        t5 = {name: wanted.pop(name) for name in list(wanted) if wanted[name].get("kind") == "t5"}
        found = find_tokenizers(self.path, self.tokenizer, wanted)
        return found | {name: find_t5(self.path, self.tokenizer, config) for name, config in t5.items()}

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return a pipeline of these parts and its scheduler; None leaves a part out."""
        import diffusers

        options = {name: value for name, value in self.index.items() if not isinstance(value, list)}
        kind = getattr(diffusers, options.pop("_class_name"))
        scheduler = getattr(diffusers, self.index["scheduler"][1]).from_config(self.configs["scheduler"])
        absent = {name: None for name, entry in self.index.items() if entry == [None, None]}
        return kind(**{**absent, **parts, "scheduler": scheduler}, **options)
