"""The model that an edit is exported for: names, shapes and values of its denoiser's weights, wherever they are.

Only the weights that are asked for are read. A pipeline of a family that efface does not know will do.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadModel
from efface.exporting.architectures import ARCHITECTURES, PARTS, architecture_of
from efface.models import fingerprint
from efface.models.files.checkpoint import Checkpoint, silent_libraries
from efface.models.files.load import find_checkpoint
from efface.models.model import Model
from efface.util.shipped import SHIPPED


@dataclass(frozen=True, eq=False)
class Base:
    """View the denoiser of a model in memory or on disk.

    name: of the model. part: of the pipeline ("unet", "transformer"). kind: the denoiser's class.
    config: its configuration. shapes: of its parameters, by name ("unet.….weight"). read: returns the values of some,
    in float32 or wider. pipeline: returns a pipeline with a denoiser of its own in float32; parts that do not denoise
    may be missing. path: the folder or file, None for a model in memory.
    """

    name: str
    part: str
    kind: type[Any]
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[Sequence[str]], dict[str, Tensor]] = field(repr=False)
    pipeline: Callable[[], Any] = field(repr=False)
    path: Path | None = None
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    @property
    def architecture(self) -> str:
        """Return the architecture by its name in `ARCHITECTURES`, "" for another."""
        return architecture_of(self.kind.__name__, self.config)

    @property
    def title(self) -> str:
        """Return the architecture's name in messages."""
        return ARCHITECTURES[self.architecture].title if self.architecture else f"a {self.kind.__name__}"

    @property
    def modules(self) -> list[str]:
        """Return the names of the denoiser's modules that have a weight."""
        head = f"{self.part}."
        return [name.removeprefix(head)[: -len(".weight")] for name in self.shapes if name.endswith(".weight")]

    @property
    def parameters(self) -> int:
        """Return the number of the denoiser's values."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def of(self, edit: Edit, any_base: bool = False) -> "Values":
        """Return the values of the weights that an edit changes; raises `BadEdit` when it does not fit this model."""
        values = Values(self.name, self.read([name for name in edit.names if name in self.shapes]))
        edit.check(values, any_base)
        return values


@dataclass(frozen=True, eq=False)
class Values:
    """Hold some weights of a model, as an edit sees them (see `NamedWeights`)."""

    name: str
    values: Mapping[str, Tensor]
    origin: None = None

    def weights(self, prefix: str = "unet.") -> dict[str, nn.Parameter]:
        """Return the weights by name."""
        own = {name: value for name, value in self.values.items() if name.startswith(prefix)}
        return {name: nn.Parameter(value, requires_grad=False) for name, value in own.items()}

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the short hashes by which an edit knows its weights."""
        return fingerprint.hashes(self.values, names, {})

    def edited(self, weights: Mapping[str, Tensor], guards: tuple[Any, ...] = (), id: str = "") -> NoReturn:
        """Raise `BadEdit`: these are weights without a model."""
        raise BadEdit("these are some weights of a model, not a model that can be edited")


def open_base(model: Any) -> Base:
    """Return a view of a model: its name or path, a `Model`, or a diffusers pipeline.

    Raises `BadFile`, `BadModel` and `UnknownName`.
    """
    if isinstance(model, str) and model in SHIPPED and SHIPPED[model].weights.is_file():  # in a format of its own
        model = Model.load(model)
    if isinstance(model, str | os.PathLike):
        return _on_disk(find_checkpoint(model), os.fspath(model))
    pipe, name = (model.pipe, model.name) if isinstance(model, Model) else (model, type(model).__name__)
    part = next((part for part in PARTS if isinstance(getattr(pipe, part, None), nn.Module)), "")
    if not part:
        raise BadModel(f"{name} has no denoiser: none of {', '.join(PARTS)}")
    return _in_memory(pipe, part, name)


def _in_memory(pipe: Any, part: str, name: str) -> Base:
    denoiser: Any = getattr(pipe, part)
    own: dict[str, Tensor] = {f"{part}.{key}": value for key, value in denoiser.named_parameters()}
    shapes = {key: tuple(value.shape) for key, value in own.items()}

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        return {key: _wide(own[key].detach().cpu()) for key in names}

    config = denoiser.config if isinstance(denoiser.config, Mapping) else vars(denoiser.config)
    return Base(name, part, type(denoiser), config, shapes, read, lambda: own_copy(pipe, part))


def own_copy(pipe: Any, part: str) -> Any:
    """Return a shallow copy of a pipeline with a denoiser of its own, in float32 on the CPU."""
    twin = copy.copy(pipe)
    denoiser = copy.deepcopy(getattr(pipe, part)).to("cpu", torch.float32).eval().requires_grad_(False)
    setattr(twin, part, denoiser)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        if hasattr(twin, name):
            setattr(twin, name, None)
    return twin


def _on_disk(checkpoint: Checkpoint, name: str) -> Base:
    kinds = checkpoint.kinds()
    part = next((part for part in PARTS if part in kinds), "")
    if not part:
        raise BadModel(f"{name} has no denoiser: none of {', '.join(PARTS)}")
    empty = checkpoint.empty(part)
    shapes = {f"{part}.{key}": tuple(value.shape) for key, value in empty.named_parameters()}

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        from efface.models.files.tensors import read as read_places

        return {key: _wide(value) for key, value in read_places(checkpoint.places(list(names)))}

    def pipeline() -> Any:
        absent = {key: None for key, entry in checkpoint.index.items() if isinstance(entry, list)}
        absent.pop("scheduler", None)
        with silent_libraries():
            return checkpoint.assemble({**absent, part: checkpoint.full(part, torch.float32)})

    return Base(name, part, kinds[part], empty.config, shapes, read, pipeline, checkpoint.path, checkpoint)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
