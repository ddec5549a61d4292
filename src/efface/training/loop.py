"""The one training loop: minimise a loss over some tensors, resumable with bit-equal results after it was stopped.

It does not depend on models. Methods use it through `methods/finetune/`, networks that are trained from scratch
through `experiments/network.py`.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput, EffaceError
from efface.training.checkpoints import State, current
from efface.util.progress import progress

BETAS = (0.9, 0.999)  # torch's own


class Diverged(EffaceError):
    """Loss or gradient that is no longer a finite number."""


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key`.

    A run draws the random numbers of step n from `generator(seed, n)`, so no generator state is stored.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def optimizer(
    kind: str,
    tensors: Sequence[Tensor],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = BETAS,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser `kind` over `tensors`, with epsilon 1e-8.

    betas, fused: of Adam and AdamW; fused steps are faster and round differently.
    Raises: BadInput for an unknown kind or lr ≤ 0.
    """
    if not 0 < lr < math.inf:
        raise BadInput(f"lr must be above 0, got {lr}")
    makers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    if kind not in makers:
        raise BadInput(f"optimizer must be one of {', '.join(makers)}, got {kind!r}")
    options: dict[str, Any] = {} if kind == "sgd" else {"betas": betas, "fused": fused}
    return makers[kind](list(tensors), lr=lr, weight_decay=weight_decay, **options)


def warmup_and_cooldown(lr: float, steps: int, warmup: int = 200, cooldown: float = 0.25) -> Callable[[int], float]:
    """Return step -> learning rate: a linear warm-up, constant, then linear to lr / 100.

    warmup: steps until `lr` is reached. cooldown: share of the steps at the end in which it falls.
    """

    def rate(step: int) -> float:
        left = (steps - step) / max(1.0, cooldown * steps)
        return lr * min(1.0, (step + 1) / warmup, max(left, 0.01))

    return rate


class Average:
    """Exponential moving average of tensors, with a decay that grows from 0.1 so that the start is forgotten.

    values: the averages by name; put them into the state's tensors, so that checkpoints include them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float):
        self.tensors, self.decay = dict(tensors), decay
        self.values = {name: t.detach().clone() for name, t in self.tensors.items()}

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Update the averages with the tensors of a step, counted from 0."""
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), [t.detach() for t in self.tensors.values()], 1 - decay)


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over all processes of torch.distributed."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view_as(t))


def descend(
    loss: Callable[[int], Float[Tensor, ""]],
    state: State,
    steps: int,
    *,
    label: str,
    run: dict[str, Any],
    rate: Callable[[int], float] | None = None,
    clip: float = 0.0,
    gradients: Callable[[], None] = lambda: None,
    updated: Callable[[], None] = lambda: None,
    resumed: Callable[[], None] = lambda: None,
    stage: str = "training",
    saves: bool = True,
    accumulate: int = 1,
) -> None:
    """Minimise `loss` with the optimiser "main" of `state` until `steps` steps are done.

    loss: takes the number of the draw, counted from 0; without accumulation that is the step.
    accumulate: losses a step; their gradients are averaged, one loss at a time is in memory.
    run: a description of the run; a checkpoint with another one is refused.
    rate: the learning rate of each step; None leaves the optimiser's own.
    clip: bound on the norm of the gradient, 0 for none.
    gradients: called after each backward pass.
    updated: called after each step of the optimiser, before `state.step` counts it.
    resumed: called after the checkpoint, if any, was loaded.
    saves: whether to write checkpoints; only one of several processes should.
    Raises: BadInput for fewer than one step, Diverged at the first loss or gradient that is not finite.
    """
    if steps < 1:
        raise BadInput(f"steps must be at least 1, got {steps}")
    opt, store = state.optimizers["main"], current()
    tensors = [p for group in opt.param_groups for p in group["params"]]
    if store:
        store.load(stage, run, state)
        resumed()
    saved = time.monotonic()
    for step in progress(range(state.step, steps), label):
        if rate:
            for group in opt.param_groups:
                group["lr"] = rate(step)
        opt.zero_grad()
        total = 0.0
        for draw in range(step * accumulate, (step + 1) * accumulate):
            value = loss(draw) / accumulate
            _check_finite(value, "loss", step, label, opt)
            value.backward()
            total += float(value.detach())
        gradients()
        norm = torch.nn.utils.clip_grad_norm_(tensors, clip) if clip else _norm(tensors)
        _check_finite(norm, "gradient", step, label, opt)
        opt.step()
        updated()
        state.step = step + 1
        state.history["loss"].append(total)
        if store and saves and (state.step == steps or store.due(state.step, time.monotonic() - saved)):
            store.save(stage, run, state)
            saved = time.monotonic()


def _norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    norms = [torch.linalg.vector_norm(t.grad) for t in tensors if t.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _check_finite(value: Tensor, what: str, step: int, label: str, opt: torch.optim.Optimizer) -> None:
    number, lr = float(value.detach()), opt.param_groups[0]["lr"]
    if not math.isfinite(number):
        raise Diverged(f"{label}: the {what} is {number} at step {step + 1}; try lr below {lr:g}")
