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
from efface.util.files import load_safetensors, save_safetensors


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
        """Restore what `pack` returned, in place."""
        for name, t in self.tensors.items():
            t.copy_(packed[f"tensor.{name}"])
        for name, opt in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in packed.items():
                if key.startswith(start := f"moment.{name}."):
                    index, what = key.removeprefix(start).split(".", 1)
                    moments.setdefault(int(index), {})[what] = value
            opt.load_state_dict(opt.state_dict() | {"state": moments})

    def release(self) -> None:
        """Free gradients and moments: with Adam, three times the memory of the trained tensors."""
        for opt in self.optimizers.values():
            opt.zero_grad()
        self.optimizers.clear()


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
            state.unpack(tensors)
            state.step, state.history = meta["step"], meta["history"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadFile(f"{self.path(stage)} does not fit this run ({error}): delete it to start over") from error

    def once(self, stage: str, run: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the result of `make`, computed once per run and stored."""
        if (found := self._read(stage, run)) is not None:
            return found[0]
        made = make()
        self._write(stage, run, made, {})
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
        if not path.exists():
            return None
        tensors, there, meta = read(path)
        here = json.loads(json.dumps(run))
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                raise BadInput(
                    f"the checkpoint {path} belongs to another run: {key} is {there.get(key)!r} there and "
                    f"{here.get(key)!r} here; choose another folder or delete it"
                )
        return tensors, meta


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return the tensors of a checkpoint, the description of its run, and its step and history.

    Raises: BadFile for a file that is missing, damaged or not a checkpoint.
    """
    tensors, header = load_safetensors(path)
    if "efface-run" not in header:
        raise BadFile(f"{path} is not a checkpoint of efface: choose another checkpoint folder")
    return tensors, json.loads(header["efface-run"]), json.loads(header["efface-state"])


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
