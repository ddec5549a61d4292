"""Train a network from nothing on the package's own loop: averaged weights, one process or several, resumable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from efface.training.checkpoints import State, checkpoints, trained
from efface.training.loop import Average, average_over_processes, descend, generator, optimizer, warmup_and_cooldown

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[torch.Generator, int], Tensor]  # the random numbers of a step, and its number -> the loss
TOGETHER = 10  # steps after which several processes average their weights
SECONDS = 120.0  # between two checkpoints


def bfloat16_is_fast() -> bool:
    """Return whether the processor has instructions for bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bfloat16() -> torch.autocast:
    """Return a context that computes in bfloat16 where the processor has instructions for it, else in float32.

    With them it is about twice as fast as float32; without them many times slower.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast())


def attention(unet_or_vae: Any) -> None:
    """Choose the attention with the faster backward pass: plain in bfloat16 (3 times), fused in float32 (1.3)."""
    unet_or_vae.set_attn_processor(AttnProcessor() if bfloat16_is_fast() else AttnProcessor2_0())


def train(
    module: nn.Module,
    path: Path,
    loss: Loss,
    steps: int,
    *,
    lr: float,
    weight_decay: float = 1e-2,
    decay: float = 0.999,
    seed: int = 0,
    seconds: float = SECONDS,
) -> State:
    """Train a network up to `steps` steps in all; goes on from the checkpoint `path` where there is one.

    The number of steps may be changed on the way: the rate is constant until the last quarter.
    decay: of the averaged weights, which `load_averaged` reads.
    """
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    average = Average(params, decay)
    tensors = {f"weight.{n}": p for n, p in params.items()} | {f"average.{n}": t for n, t in average.values.items()}
    tensors |= {f"buffer.{name}": b for name, b in module.named_buffers()}
    fused = optimizer("adamw", list(params.values()), lr, weight_decay, betas=(0.9, 0.99), fused=True)
    state, rank = State(tensors, {"main": fused}), dist.get_rank() if dist.is_initialized() else 0

    def seeded(step: int) -> Tensor:
        g = generator(seed, step, rank)
        torch.manual_seed(g.initial_seed())  # dropout has no generator of its own
        return loss(g, step)

    def updated() -> None:
        if dist.is_initialized() and state.step % TOGETHER == TOGETHER - 1:
            average_over_processes(list(params.values()))
        average.move(state.step)

    def together() -> None:
        """Wait until every process has read the checkpoint, before one writes the next."""
        if dist.is_initialized():
            dist.barrier()

    run: dict[str, Any] = {"network": path.stem, "lr": lr, "weight_decay": weight_decay, "decay": decay, "seed": seed}
    module.train()
    with checkpoints(path.parent, seconds=seconds):
        descend(
            seeded, state, steps, label=path.stem, run=run, rate=warmup_and_cooldown(lr, steps), clip=1.0,
            updated=updated, resumed=together, stage=path.stem, saves=rank == 0,
        )  # fmt: skip
    return state


def load_averaged(module: M, path: Path, prefix: str = "") -> M:
    """Load a training's averaged weights and its buffers into a fresh network, and freeze it.

    prefix: where the network is inside the one that was trained.
    """
    tensors = trained(path, f"average.{prefix}") | trained(path, f"buffer.{prefix}")
    wanted = module.state_dict()  # some buffers are not part of it
    module.load_state_dict({name: t for name, t in tensors.items() if name in wanted})
    return module.eval().requires_grad_(False)
