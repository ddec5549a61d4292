"""Edit a checkpoint without loading it whole: only text encoders and the weights that read the text are loaded.

The other weights, 0.84 billion of a Stable Diffusion, 2.2 billion of SDXL and 11.9 billion of FLUX.1, stay on disk;
what is read is held in float32, 0.6 GB, 4.6 GB and, with T5, 19.6 GB.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput, BadModel
from efface.models.family import known_families
from efface.models.files.checkpoint import Checkpoint, silent_libraries
from efface.models.files.load import find_checkpoint
from efface.models.files.tensors import write_copy
from efface.models.model import Model


@dataclass(frozen=True, eq=False)
class StreamedModel(Model):
    """View a checkpoint on disk as a model with text encoders and key and value matrices only."""

    @cached_property
    def id(self) -> str:
        """Return "": the id would require reading the whole checkpoint."""
        return ""

    @property
    def device(self) -> torch.device:
        """Return the device of the text encoders; the rest of the denoiser is not loaded."""
        return torch.device("cpu")


def write(
    edit: Edit,
    where: str | os.PathLike[str],
    out: str | os.PathLike[str],
    any_base: bool = False,
) -> None:
    """Write an edited copy of a checkpoint; all other values are copied in blocks.

    out: a .safetensors file for a file, a new folder for a folder. Values are added in float32 or wider and rounded
    once to the type in the file. Raises `BadEdit` for an edit with guards or, unless `any_base`, of other weights,
    and `WriteError`.
    """
    if edit.guards:
        raise BadEdit("a guard works while images are generated: it cannot be written into a checkpoint")
    checkpoint = find_checkpoint(where)
    source, target = checkpoint.path, Path(out)
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise BadInput(f"{out} is the checkpoint itself: write the edited copy somewhere else")
    for part in checkpoint.kinds():
        checkpoint.check(part, checkpoint.empty(part))
    edit.check(_view(checkpoint, edit.names), any_base)

    def value(name: str, old: Tensor) -> Tensor:
        terms = [m.delta(old.float()) for m in edit.maps if name in m.names]
        terms += [edit.delta[name].float()] if name in edit.delta else []
        return sum(terms, old.float())

    about = {key: edit.meta[key] for key in ("method", "fields", "erase", "preserve", "keep", "op") if key in edit.meta}
    meta = {"efface_edit": json.dumps({"id": edit.id, **about})}
    write_copy(source, target, checkpoint.places(edit.names), value, meta)


def open_model(
    where: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, pooled: bool = False
) -> StreamedModel:
    """Open a checkpoint: its tokenizers, its text encoders, and the matrices that read the text.

    pooled: also read those of the pooled vector. All parts are checked as far as headers tell: names, shapes and types
    of weights.
    Raises `BadFile`, `BadModel` and `UnknownName`.
    """
    checkpoint = find_checkpoint(where, tokenizer)
    kinds = checkpoint.kinds()
    denoisers = {family.DENOISER for family in known_families()}
    with silent_libraries():
        parts = dict.fromkeys(kinds) | checkpoint.tokenizers()
        parts |= {name: checkpoint.full(name, torch.float32) for name in kinds if name.startswith("text_encoder")}
        empty = {name: checkpoint.empty(name) for name in kinds if not name.startswith("text_encoder")}
        for name, module in empty.items():
            checkpoint.check(name, module)
        parts |= {name: module for name, module in empty.items() if name in denoisers}
        model = StreamedModel(checkpoint.assemble(parts), name=os.fspath(where))
    names = model.text_weights()
    if not names:
        raise BadModel(f"{where} has no weights whose only input is the text: there is nothing to edit")
    _fill(model, checkpoint, [*names, *(model.family.pooled_weights() if pooled else ())])
    return model


def _view(checkpoint: Checkpoint, names: Sequence[str]) -> StreamedModel:
    """Return a model with only some weights of a checkpoint, to check an edit on."""
    parts: Any = SimpleNamespace(**{part: checkpoint.empty(part) for part in checkpoint.kinds()})
    model = StreamedModel(parts, name=str(checkpoint.path))
    known = model.weights("")
    _fill(model, checkpoint, [name for name in names if name in known])
    return model


def _fill(model: Model, checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Read some weights of a model's parts, in float32."""
    places = checkpoint.places(names)
    for part in dict.fromkeys(name.partition(".")[0] for name in names):
        own = {name: place for name, place in places.items() if name.startswith(f"{part}.")}
        checkpoint.fill(model.part(part), part, own, torch.float32)
