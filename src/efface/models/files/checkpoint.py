"""A checkpoint on disk: its parts, the places of their weights, and the pipeline made from them.

Parts with weights are built empty and filled from the files, tensor by tensor, so that a weight that is missing, of
another shape, not of the model or not finite is named in an error. (transformers alone fills gaps at random.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import BadModel
from efface.models.files import configs
from efface.models.files.configs import LIBRARIES, NOT_READ
from efface.models.files.tensors import Place, read, shape_of
from efface.util.files import FLOATS, check_safetensors
from efface.util.untrusted import shorten, some


@dataclass(frozen=True, eq=False)
class Checkpoint(ABC):
    """View a checkpoint on disk, of which only headers and configurations are read.

    path: the folder or file.
    index: its model_index, the class of each part: {"unet": ["diffusers", "UNet2DConditionModel"], …}.
    configs: the configuration of every part that has weights.
    """

    path: Path
    index: Mapping[str, Any]
    configs: dict[str, dict[str, Any]] = field(repr=False)

    def __post_init__(self) -> None:
        """Raise `BadModel` for an index or a configuration of a part that cannot be one."""
        configs.check_index(self.path, self.index)
        configs.check(self.path, self.configs)

    @abstractmethod
    def find(self, names: Sequence[str]) -> dict[str, Place]:
        """Return the places of the weights that the checkpoint has, by name ("unet.….weight")."""

    @abstractmethod
    def strays(self, names: Collection[str]) -> list[str]:
        """Return the names of stored tensors that are not among these weights, which are all of some parts."""

    @abstractmethod
    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return a pipeline of these parts and what else the checkpoint holds; None leaves a part out."""

    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers that the checkpoint does not hold itself; raises `BadModel` when there are none."""
        return {}

    def kinds(self) -> dict[str, type[Any]]:
        """Return the classes of the parts that have weights, by name, without parts that efface does not use."""
        found = {name: _class(self.path, *entry) for name, entry in self.index.items() if _is_entry(name, entry)}
        return {name: kind for name, kind in found.items() if issubclass(kind, nn.Module)}

    def places(self, names: Sequence[str]) -> dict[str, Place]:
        """Return the places of weights, by name; raises `BadModel` when one is missing."""
        found = self.find(names)
        missing = [name for name in names if name not in found]
        if missing:
            raise BadModel(f"{self.path} is not a complete model: it has no {some(missing)}")
        return found

    def empty(self, part: str) -> Any:
        """Build a part without values for its weights, in evaluation mode and without gradients."""
        from accelerate import init_empty_weights

        kind, config = self.kinds()[part], self.configs.get(part)
        if config is None:
            raise BadModel(f"{self.path} is not a complete model: it has no configuration of its {part}")
        try:
            with init_empty_weights(include_buffers=False):
                module = kind.from_config(config) if hasattr(kind, "from_config") else kind(_transformer(kind, config))
        except Exception as error:  # transformers has errors of its own kind for this
            raise BadModel(f"{self.path} has no usable configuration of its {part}: {one_line(error)}") from error
        if hasattr(module, "tie_weights"):
            module.tie_weights()  # building without values unties them
        return module.eval().requires_grad_(False)

    def check(self, part: str, module: nn.Module) -> dict[str, Place]:
        """Return the places of all weights of a part, from the files' headers alone.

        module: the part. Raises `BadModel` for weights that are missing, left over, of another shape or quantised.
        """
        own = {f"{part}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
        first = {id(value): name for name, value in reversed(own.items())}  # only one of tied weights may be stored
        found = self.find(list(own))
        for name, value in own.items():
            if name in found:
                first[id(value)] = name
        at = self.places(list(first.values()))
        strays = self.strays(own)
        if strays:
            raise BadModel(f"{self.path} does not fit: its {part} has no weight {some(strays)}")
        for name, place in at.items():
            self._check_stored(name, own[name], place)
        return at

    def full(self, part: str, dtype: torch.dtype) -> Any:
        """Build a part with all of its weights; raises `BadModel` as `check` and `fill` do."""
        module = self.empty(part)
        self.fill(module, part, self.check(part, module), dtype)
        return module

    def fill(self, module: nn.Module, part: str, at: Mapping[str, Place], dtype: torch.dtype) -> None:
        """Read weights into a part in a dtype; raises `BadModel` for one of another shape or not finite."""
        infinite = []
        tied: dict[int, list[str]] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            tied.setdefault(id(value), []).append(name)
        for name, value in read(at):
            own = name.removeprefix(f"{part}.")
            old = _get(module, own)
            if value.shape != old.shape:
                raise BadModel(self._another_shape(name, list(value.shape), list(old.shape)))
            value = (value.to(dtype) if value.is_floating_point() else value).contiguous()
            infinite += [] if _finite(value) else [name]
            new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
            for one in tied.get(id(old), [own]):
                home, _, leaf = one.rpartition(".")
                setattr(module.get_submodule(home), leaf, new)
        if infinite:
            raise BadModel(f"{self.path} has weights that are not finite numbers in {dtype}: {some(infinite)}")

    def _check_stored(self, name: str, value: Tensor, place: Place) -> None:
        stored = self._headers(place.file)[place.key]
        if value.is_floating_point() and stored["dtype"] not in FLOATS:
            raise BadModel(
                f"{self.path} is quantised: {name} is stored as {stored['dtype']}; give the model as it was before, "
                f"in {', '.join(FLOATS)}"
            )
        shape = shape_of(place, stored["shape"])
        if shape != list(value.shape):
            raise BadModel(self._another_shape(name, shape or stored["shape"], list(value.shape)))

    def _another_shape(self, name: str, found: list[int], expected: list[int]) -> str:
        return f"{self.path} is inconsistent: {name} is {found}, expected {expected}"

    @cached_property
    def _headers(self) -> Callable[[Path], dict[str, Any]]:
        return cache(check_safetensors)

    def pipeline(self, dtype: torch.dtype) -> Any:
        """Load the whole checkpoint as a diffusers pipeline; raises `BadFile` and `BadModel`."""
        with silent_libraries():
            words = self.tokenizers()  # before anything large is read
            return self.assemble({**words, **{part: self.full(part, dtype) for part in self.kinds()}})


def _is_entry(name: str, entry: Any) -> bool:
    return name not in NOT_READ and isinstance(entry, list | tuple) and entry[0] in LIBRARIES


def _class(path: Path, library: str, name: str) -> type[Any]:
    import diffusers
    import transformers

    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
    if not isinstance(kind, type):
        raise BadModel(f"{path} names the class {shorten(name)}, which {library} does not have")
    return kind


def _transformer(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a configuration object of transformers."""
    return kind.config_class.from_dict({key: value for key, value in config.items() if key != "model_type"})


def _get(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its dotted name."""
    home, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(home), leaf)


def _finite(value: Tensor) -> bool:
    """Return whether all values are finite, in one pass without a copy: an extreme that is not a number is NaN."""
    if not value.is_floating_point() or not value.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in value.aminmax())


def one_line(error: Exception) -> str:
    """Return the message of another library's error on one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Silence the libraries' own progress bars."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in logs:
            log.enable_progress_bar()
