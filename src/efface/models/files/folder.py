"""A diffusers folder as a checkpoint: one subfolder for each part, with a configuration and .safetensors files."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.models.files.checkpoint import Checkpoint, one_line
from efface.models.files.configs import NOT_READ, check_index
from efface.models.files.tensors import Place, weight_files
from efface.models.files.tokenizer import open_folder
from efface.models.files.unused import is_unused
from efface.util import untrusted

OPTIONAL = ("text_encoder_3", "tokenizer_3")  # SD3 without its T5
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
CONFIGS = {"scheduler": "scheduler_config.json"}  # the names of files with configurations that are not config.json
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
        index = untrusted.read(path / "model_index.json", BadModel)
        check_index(path, index)  # before its parts are names of folders
        parts = [part for part, entry in index.items() if isinstance(entry, list)]
        files = {part: path / part / CONFIGS.get(part, "config.json") for part in parts}
        read = {
            part: untrusted.read(file, BadModel)
            for part, file in files.items()
            if part not in NOT_READ and file.exists()
        }
        return cls(path, index, read)

    def find(self, names: Sequence[str]) -> dict[str, Place]:
        """Return the places of the weights that the checkpoint has, by name."""
        found = {name: self._stored(name.partition(".")[0]).get(_plain(name)) for name in names}
        return {name: place for name, place in found.items() if place is not None}

    def strays(self, names: Collection[str]) -> list[str]:
        """Return the names of stored tensors of these parts that are not among these weights."""
        own = {_plain(name) for name in names}
        parts = {name.partition(".")[0] for name in names}
        keys = [key for part in sorted(parts) for key in self._stored(part)]
        return [key for key in keys if key not in own and not is_unused(key)]

    def tokenizers(self) -> dict[str, Any]:
        """Return the folder's tokenizers; raises `BadModel` for one that is incomplete or not of its text encoder."""
        found = {}
        for name, entry in self.index.items():
            if isinstance(entry, list) and entry[0] == "transformers" and entry[1] in CLIP_TOKENIZERS:
                encoder = self.configs.get(name.replace("tokenizer", "text_encoder"), {})
                found[name] = open_folder(self.path / name, encoder)
        return found

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return a pipeline of these parts and the folder's own scheduler."""
        from diffusers import DiffusionPipeline

        absent = [n for n, entry in self.index.items() if n in NOT_READ or (n in OPTIONAL and entry == [None, None])]
        given = {**dict.fromkeys(absent), **parts}
        if "safety_checker" in self.index:
            given["requires_safety_checker"] = False
        try:
            return DiffusionPipeline.from_pretrained(str(self.path), **given, local_files_only=True)
        except Exception as error:  # the libraries raise nothing narrower for a bad scheduler or index
            raise BadModel(f"{self.path} cannot be loaded by diffusers: {one_line(error)}") from error

    def _stored(self, part: str) -> dict[str, Place]:
        """Return the places of a part's weights, by plain name."""
        if part not in self._known:
            stored: dict[str, Place] = {}
            for file in weight_files(self.path / part):
                for key in self._headers(file):
                    name = _plain(f"{part}.{key}")
                    if name in stored:
                        files = f"{stored[name].file.name} and {file.name}"
                        raise BadModel(f"{self.path} has {untrusted.shorten(name)} twice: in {files}")
                    stored[name] = Place(file, key)
            self._known[part] = stored
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
