"""The one training loop: minimise a loss over some tensors, resumable to bit-equal results after a kill.

It knows nothing of models. Fine-tuning methods come to it through `_finetune.py`; anything else that descends
a gradient (an inverted token, a prompt key) can call `descend` by itself.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadFile, BadInput, EffaceError, WriteError
from efface.util.files import load_safetensors, save_safetensors
from efface.util.progress import progress


class Diverged(EffaceError):
    """Report a loss or gradient that stopped being a finite number."""


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key`.

    A run draws the random numbers of step n from `generator(seed, n)`, so a resumed run has none to restore.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def optimizer(kind: str, tensors: Sequence[Tensor], lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimiser `kind` over `tensors`, with torch's betas (0.9, 0.999) and epsilon 1e-8.

    Raises: BadInput for an unknown kind or lr ≤ 0.
    """
    if not 0 < lr < math.inf:
        raise BadInput(f"lr must be above 0, got {lr}")
    makers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    if kind not in makers:
        raise BadInput(f"optimizer must be one of {', '.join(makers)}, got {kind!r}")
    return makers[kind](list(tensors), lr=lr, weight_decay=weight_decay)


@dataclass(eq=False)
class State:
    """Hold all that a resumed run must find again.

    tensors: what training changes, updated in place.
    optimizers: optimisers by name; `descend` steps "main".
    step: steps done.
    history: the loss of every step done, and what else was noted of every step.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})

    def pack(self) -> dict[str, Tensor]:
        """Return tensors and moments under one set of names."""
        packed = {f"tensor.{name}": t.detach() for name, t in self.tensors.items()}
        for name, opt in self.optimizers.items():
            for index, moments in opt.state_dict()["state"].items():
                packed |= {f"moment.{name}.{index}.{key}": torch.as_tensor(v) for key, v in moments.items()}
        return packed

    @torch.no_grad()
    def unpack(self, packed: dict[str, Tensor]) -> None:
        """Take over what `pack` returned; tensors keep their storage."""
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
        """Let go of gradients and moments: with Adam, three times the memory of what was trained."""
        for opt in self.optimizers.values():
            opt.zero_grad()
        self.optimizers.clear()


@dataclass(frozen=True)
class Checkpoints:
    """Keep what a run needs to go on after a kill: one file per stage, always whole.

    folder: a folder of this run alone, made when first written to.
    every: steps between two checkpoints.
    """

    folder: Path
    every: int = 25

    def save(self, stage: str, run: dict[str, Any], state: State) -> None:
        """Write the state of `stage` of the run that `run` describes."""
        self._write(stage, run, state.pack(), {"step": state.step, "history": state.history})

    def load(self, stage: str, run: dict[str, Any], state: State) -> None:
        """Bring `state` to the checkpoint of this stage, if there is one."""
        if (found := self._read(stage, run)) is None:
            return
        tensors, meta = found
        try:
            state.unpack(tensors)
            state.step, state.history = meta["step"], meta["history"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise BadFile(f"{self._path(stage)} does not fit this run ({error}): delete it to start over") from error

    def once(self, stage: str, run: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what `make` returned the first time it ran for this run."""
        if (found := self._read(stage, run)) is not None:
            return found[0]
        made = make()
        self._write(stage, run, made, {})
        return made

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def _write(self, stage: str, run: dict[str, Any], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot make the checkpoint folder {self.folder}: {error.strerror}") from error
        save_safetensors(self._path(stage), tensors, {"efface-run": json.dumps(run), "efface-state": json.dumps(meta)})

    def _read(self, stage: str, run: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self._path(stage)
        if not path.exists():
            return None
        tensors, header = load_safetensors(path)
        if "efface-run" not in header:
            raise BadFile(f"{path} is not a checkpoint of efface: choose another checkpoint folder")
        there, here = json.loads(header["efface-run"]), json.loads(json.dumps(run))
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                raise BadInput(
                    f"the checkpoint {path} is of another run: {key} is {there.get(key)!r} there and "
                    f"{here.get(key)!r} here; choose another folder or delete it"
                )
        return tensors, json.loads(header["efface-state"])


_current: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder: str | Path, every: int = 25) -> Iterator[None]:
    """Keep checkpoints of the training inside this block in `folder`, and go on from the one found there.

    >>> with checkpoints("church.run"):                                     # doctest: +SKIP
    ...     edit = ESD()(model, [Concept("church")])

    Raises: BadInput if `every` is below 1 and, when training starts, if the folder holds another run.
    """
    if every < 1:
        raise BadInput(f"steps between checkpoints must be at least 1, got {every}")
    token = _current.set(Checkpoints(Path(folder), every))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Checkpoints | None:
    """Return the checkpoints in force, or None."""
    return _current.get()


def descend(
    loss: Callable[[int], Float[Tensor, ""]],
    state: State,
    steps: int,
    *,
    label: str,
    run: dict[str, Any],
    clip: float = 0.0,
    gradients: Callable[[], None] = lambda: None,
    updated: Callable[[], None] = lambda: None,
    resumed: Callable[[], None] = lambda: None,
    stage: str = "training",
    saves: bool = True,
) -> None:
    """Minimise `loss(step)` with the optimiser "main" of `state` until `steps` steps are done.

    run: a description of the run; a checkpoint with another one is refused.
    clip: bound on the norm of the gradient, 0 for none.
    gradients: called after each backward pass.
    updated: called after each step of the optimiser.
    resumed: called after a checkpoint was looked for.
    saves: write checkpoints, which only one of several processes should.
    Raises: BadInput for fewer than one step, Diverged at the first loss or gradient that is not finite.
    """
    if steps < 1:
        raise BadInput(f"steps must be at least 1, got {steps}")
    opt, kept = state.optimizers["main"], current()
    tensors = [p for group in opt.param_groups for p in group["params"]]
    if kept:
        kept.load(stage, run, state)
        resumed()
    for step in progress(range(state.step, steps), label):
        opt.zero_grad()
        value = loss(step)
        _check_finite(value, "loss", step, label, opt)
        value.backward()
        gradients()
        norm = torch.nn.utils.clip_grad_norm_(tensors, clip) if clip else _norm(tensors)
        _check_finite(norm, "gradient", step, label, opt)
        opt.step()
        updated()
        state.step = step + 1
        state.history["loss"].append(float(value.detach()))
        if kept and saves and (state.step % kept.every == 0 or state.step == steps):
            kept.save(stage, run, state)


def _norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    norms = [torch.linalg.vector_norm(t.grad) for t in tensors if t.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _check_finite(value: Tensor, what: str, step: int, label: str, opt: torch.optim.Optimizer) -> None:
    number, lr = float(value.detach()), opt.param_groups[0]["lr"]
    if not math.isfinite(number):
        raise Diverged(f"{label}: the {what} is {number} at step {step + 1}; try lr below {lr:g}")
