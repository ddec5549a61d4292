"""A diffusers folder as a checkpoint: one subfolder for each part, with a configuration and .safetensors files."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.models.files.checkpoint import NOT_READ, Checkpoint, one_line
from efface.models.files.original_layout import NO_WEIGHT
from efface.models.files.tensors import Place, weight_files
from efface.util.files import check_safetensors

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # in old autoencoders


@dataclass(frozen=True, eq=False)
class Folder(Checkpoint):
    """View a diffusers folder."""

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """Open a folder; raises `BadFile` and `BadModel`."""
        if not (path / "model_index.json").is_file():
            raise BadModel(f"{path} is not a diffusers model folder: it has no model_index.json")
        if not any(path.rglob("*.safetensors")):
            raise BadModel(f"{path} has no .safetensors weights; pickled ones (.bin) are not read: convert them first")
        index = _json(path / "model_index.json")
        return cls(
            path, index, {part: _json(file) for part in index if (file := path / part / "config.json").is_file()}
        )

    def find(self, names: Sequence[str]) -> dict[str, Place]:
        """Return the places of the weights that the checkpoint has, by name."""
        found = {name: self._stored(name.partition(".")[0]).get(_plain(name)) for name in names}
        return {name: place for name, place in found.items() if place is not None}

    def strays(self, names: Collection[str]) -> list[str]:
        """Return the names of stored tensors of these parts that are not among these weights."""
        own = {_plain(name) for name in names}
        parts = {name.partition(".")[0] for name in names}
        keys = [key for part in sorted(parts) for key in self._stored(part)]
        return [key for key in keys if key not in own and not NO_WEIGHT.fullmatch(key)]

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return a pipeline of these parts and the folder's own tokenizers and scheduler."""
        from diffusers import DiffusionPipeline

        given = {**{name: None for name in NOT_READ if name in self.index}, **parts}
        if "safety_checker" in self.index:
            given["requires_safety_checker"] = False
        try:
            return DiffusionPipeline.from_pretrained(str(self.path), **given, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise BadModel(f"{self.path} cannot be loaded by diffusers: {one_line(error)}") from error

    def _stored(self, part: str) -> dict[str, Place]:
        """Return the places of a part's weights, by plain name."""
        if part not in self._known:
            files = weight_files(self.path / part)
            keys = {file: check_safetensors(file) for file in files}
            self._known[part] = {_plain(f"{part}.{key}"): Place(file, key) for file in files for key in keys[file]}
        return self._known[part]

    @cached_property
    def _known(self) -> dict[str, dict[str, Place]]:
        return {}


def _plain(name: str) -> str:
    """Return a weight's name in a form that does not depend on the libraries' versions.

    transformers writes "text_model." in front of a text encoder's weights, or not; diffusers has renamed the
    attention of autoencoders.
    """
    name = re.sub(r"^(text_encoder\w*)\.text_model\.", r"\1.", name)
    old = re.fullmatch(r"(vae\..+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(.+)", name)
    return f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}" if old else name


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} is not valid JSON") from error
    if not isinstance(found, dict):
        raise BadModel(f"{path} is not valid JSON of a configuration")
    return found
