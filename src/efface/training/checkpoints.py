"""Checkpoints: the state of a training, to resume it; safetensors files, written whole or not at all."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import BadFile, BadInput, WriteError
from efface.util.files import load_safetensors, save_safetensors, sha256_tensors
from efface.util.temporary import sweep
from efface.util.untrusted import is_count, parse, shorten


@dataclass(eq=False)
class State:
    """Hold the state of a training that a checkpoint stores.

    tensors: weights, buffers and averages, updated in place by training.
    optimizers: optimisers by name; `descend` steps "main".
    step: steps done.
    history: the loss and other recorded numbers of every step done.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})

    def pack(self) -> dict[str, Tensor]:
        """Return tensors and the optimisers' moments by name."""
        packed = {f"tensor.{name}": t.detach() for name, t in self.tensors.items()}
        for name, opt in self.optimizers.items():
            for index, moments in opt.state_dict()["state"].items():
                packed |= {f"moment.{name}.{index}.{key}": torch.as_tensor(v) for key, v in moments.items()}
        return packed

    @torch.no_grad()
    def unpack(self, packed: dict[str, Tensor]) -> None:
        """Restore what `pack` returned, in place.

        Raises: KeyError or ValueError for tensors and moments that are missing or of another shape, before any change.
        """
        for name, t in self.tensors.items():
            _check_shape(name, packed[f"tensor.{name}"], t.shape)
        for name, t in self.tensors.items():
            t.copy_(packed[f"tensor.{name}"])
        for name, opt in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in packed.items():
                if key.startswith(start := f"moment.{name}."):
                    index, what = key.removeprefix(start).split(".", 1)
                    moments.setdefault(int(index), {})[what] = value
            _check_moments(name, opt, moments)
            opt.load_state_dict(opt.state_dict() | {"state": moments})

    def release(self) -> None:
        """Free gradients and moments: with Adam, three times the memory of the trained tensors."""
        for opt in self.optimizers.values():
            opt.zero_grad()
        self.optimizers.clear()


def _check_shape(name: str, found: Tensor, expected: torch.Size) -> None:
    if found.shape != expected:
        raise ValueError(f"{name} is {list(found.shape)}, expected {list(expected)}")


def _check_moments(name: str, opt: torch.optim.Optimizer, moments: dict[int, dict[str, Tensor]]) -> None:
    """Raise `ValueError` unless moments are those of the optimiser's tensors; some may have none yet."""
    tensors = [p for group in opt.param_groups for p in group["params"]]
    kinds = MOMENTS[type(opt).__name__]
    for index, found in moments.items():
        if not 0 <= index < len(tensors) or found.keys() != set(kinds):
            raise ValueError(f"the optimiser {name} has no such moments of tensor {index}")
        for what, value in found.items():
            shape = torch.Size() if what == "step" else tensors[index].shape
            _check_shape(f"{what} of tensor {index}", value, shape)


ADAM = ("step", "exp_avg", "exp_avg_sq")
MOMENTS = {"Adam": ADAM, "AdamW": ADAM, "SGD": ()}  # what the optimisers of `loop.optimizer` store of each tensor
EVERY = 25  # steps, where writing is cheap
SHARE = 0.05  # of the time may go into writing checkpoints: Adam over a whole UNet of SD 1.4 writes 10 GB


@dataclass(eq=False)
class Checkpoints:
    """Write and read the checkpoints of one run: one file per stage.

    folder: a folder for this run only, made on the first write.
    every: steps between two checkpoints; 0: 25, or more when writing would take over a twentieth of the time.
    seconds: when above 0, seconds between two checkpoints, whatever the number of steps.
    cost: seconds that writing the last checkpoint took.
    """

    folder: Path
    every: int = 0
    seconds: float = 0.0
    cost: float = field(default=0.0, init=False)

    def due(self, step: int, seconds: float) -> bool:
        """Return whether to save after `step` steps, `seconds` after the last checkpoint."""
        if self.seconds:
            return seconds >= self.seconds
        return step % (self.every or EVERY) == 0 and (self.every > 0 or seconds * SHARE >= self.cost)

    def save(self, stage: str, run: dict[str, Any], state: State) -> None:
        """Write the state of a stage; `run` is the description of the run."""
        began = time.monotonic()
        self._write(stage, run, state.pack(), {"step": state.step, "history": state.history})
        self.cost = time.monotonic() - began

    def load(self, stage: str, run: dict[str, Any], state: State) -> None:
        """Load the checkpoint of this stage into `state`, if there is one.

        Raises: BadInput for a checkpoint of another run, BadFile for one that does not fit.
        """
        if (found := self._read(stage, run)) is None:
            return
        tensors, meta = found
        try:
            step, history = _progress(meta)
            state.unpack(tensors)
            state.step, state.history = step, history
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise BadFile(
                f"{self.path(stage)} does not fit this run ({shorten(str(error))}): delete it to start over"
            ) from error

    def once(self, stage: str, run: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the result of `make`, computed once per run and stored; raises BadFile for a damaged one."""
        if (found := self._read(stage, run)) is not None:
            tensors, meta = found
            if meta.get("content") != sha256_tensors(tensors):
                raise BadFile(f"{self.path(stage)} is damaged: delete it to compute it again")
            return tensors
        made = make()
        self._write(stage, run, made, {"content": sha256_tensors(made)})
        return made

    def path(self, stage: str) -> Path:
        """Return the file of a stage."""
        return self.folder / f"{stage}.safetensors"

    def _write(self, stage: str, run: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot make the checkpoint folder {self.folder}: {error.strerror}") from error
        save_safetensors(self.path(stage), tensors, {"efface-run": json.dumps(run), "efface-state": json.dumps(meta)})

    def _read(self, stage: str, run: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.path(stage)
        sweep(self.folder)
        if not path.exists():
            return None
        tensors, there, meta = read(path)
        here = json.loads(json.dumps(run))
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                raise BadInput(
                    f"the checkpoint {path} belongs to another run: {shorten(key)} is "
                    f"{shorten(repr(there.get(key)), 300)} there and {shorten(repr(here.get(key)), 300)} here; choose "
                    "another folder or delete it"
                )
        return tensors, meta


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return the tensors of a checkpoint, the description of its run, and its step and history.

    Raises: BadFile for a file that is missing, damaged or not a checkpoint.
    """
    tensors, header = load_safetensors(path)
    if not {"efface-run", "efface-state"} <= header.keys():
        raise BadFile(f"{path} is not a checkpoint of efface: choose another checkpoint folder")
    run, meta = (parse(header[f"efface-{name}"], f"{path} is damaged: its {name}") for name in ("run", "state"))
    return tensors, run, meta


def _progress(meta: dict[str, Any]) -> tuple[int, dict[str, list[float]]]:
    """Return the steps done and the recorded numbers of each; raises ValueError or KeyError for anything else."""
    step, history = meta["step"], meta["history"]
    if not is_count(step, 0, 2**53):
        raise ValueError(f"its step is {shorten(repr(step))}")
    if not isinstance(history, dict) or not isinstance(history.get("loss"), list) or len(history["loss"]) != step:
        raise ValueError(f"it has no loss of each of {step} steps")
    for name, values in history.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"its {shorten(name)} are no numbers")
    return step, history


def trained(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's state whose names begin with `prefix`, without it."""
    start = f"tensor.{prefix}"
    return {name.removeprefix(start): t for name, t in read(path)[0].items() if name.startswith(start)}


_current: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder: str | Path, every: int = 0, seconds: float = 0.0) -> Iterator[None]:
    """Write checkpoints of the training inside the block to `folder`, and resume from one found there.

    >>> with checkpoints("church.run"):                                     # doctest: +SKIP
    ...     edit = ESD()(model, [Concept("church")])

    every: steps between two checkpoints; 0: 25, or more when writing would take over a twentieth of the time.
    seconds: when above 0, seconds between them instead.
    Raises: BadInput if `every` or `seconds` below 0 and, when training starts, if the folder holds
    another run.
    """
    if every < 0:
        raise BadInput(f"steps between checkpoints must be at least 1, or 0 to choose, got {every}")
    if not seconds >= 0:
        raise BadInput(f"seconds between checkpoints must be at least 0, got {seconds}")
    token = _current.set(Checkpoints(Path(folder), every, seconds))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Checkpoints | None:
    """Return the checkpoints of the enclosing `checkpoints` block, or None."""
    return _current.get()
