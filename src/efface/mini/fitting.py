"""One resumable training loop for every part of mini: safetensors checkpoints, averaged weights, one process or two."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from efface.util.progress import progress

Loss = Callable[[int, torch.Generator], Tensor]


def rate(step: int, steps: int, lr: float, warm: int = 200, cool: float = 0.25) -> float:
    """Return the learning rate: a short warm-up, constant, then linear to zero over the last `cool` of the steps."""
    left = (steps - step) / max(1.0, cool * steps)
    return lr * min(1.0, (step + 1) / warm, max(left, 0.01))


def _random(seed: int, step: int) -> torch.Generator:
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.Generator().manual_seed((seed * 2 + rank) * 10_000_019 + step)


def _average(tensors: Sequence[Tensor]) -> None:
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.data.copy_(part.view_as(tensor))


class Fitting:
    """The state of one training: module, optimiser, averaged weights, step; saved whole, resumed exactly."""

    def __init__(self, module: nn.Module, path: Path, lr: float, weight_decay: float = 1e-2, ema: float = 0.999):
        self.module, self.path, self.lr, self.ema, self.step = module, path, lr, ema, 0
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.params.items()}
        self.optimiser = torch.optim.AdamW(
            self.params.values(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        if path.exists():
            self.load()

    def save(self) -> None:
        tensors = {f"w.{n}": p.detach() for n, p in self.params.items()}
        tensors |= {f"a.{n}": a for n, a in self.average.items()}
        tensors |= {f"b.{n}": b for n, b in self.module.named_buffers()}
        for n, p in self.params.items():
            for key, value in self.optimiser.state.get(p, {}).items():
                tensors[f"o.{key}.{n}"] = value
        temporary = self.path.with_suffix(".part")
        save_file(
            {n: t.contiguous() for n, t in tensors.items()},
            temporary,
            {"state": json.dumps({"step": self.step})},
        )
        temporary.replace(self.path)

    def load(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.step = json.loads(file.metadata()["state"])["step"]
            keys = set(file.keys())
            with torch.no_grad():
                for n, p in self.params.items():
                    p.copy_(file.get_tensor(f"w.{n}"))
                    self.average[n].copy_(file.get_tensor(f"a.{n}"))
                    moments = ("step", "exp_avg", "exp_avg_sq")
                    if f"o.step.{n}" in keys:
                        self.optimiser.state[p] = {k: file.get_tensor(f"o.{k}.{n}") for k in moments}
                for n, b in self.module.named_buffers():
                    b.copy_(file.get_tensor(f"b.{n}"))

    def run(self, loss: Loss, steps: int, seed: int = 0, save_every: float = 120, log: Path | None = None) -> None:
        """Train up to `steps` in all; two processes average their weights every ten steps."""
        saved, total, many = time.time(), 0.0, dist.is_initialized()
        first = not many or dist.get_rank() == 0
        self.module.train()
        for step in progress(range(self.step, steps), self.path.stem):
            for group in self.optimiser.param_groups:
                group["lr"] = rate(step, steps, self.lr)
            value = loss(step, _random(seed, step))
            value.backward()
            nn.utils.clip_grad_norm_(self.params.values(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            if many and step % 10 == 9:
                _average(list(self.params.values()))
            keep = min(self.ema, (step + 1) / (step + 10))
            torch._foreach_mul_(list(self.average.values()), keep)
            torch._foreach_add_(list(self.average.values()), [p.detach() for p in self.params.values()], alpha=1 - keep)
            self.step, total = step + 1, total + value.item()
            if log and first and self.step % 100 == 0:
                with open(log, "a") as file:
                    file.write(json.dumps({"step": self.step, "loss": total / 100, "time": time.time()}) + "\n")
                total = 0.0
            if first and time.time() - saved > save_every:
                self.save()
                saved = time.time()
        if first:
            self.save()

    def use_average(self) -> nn.Module:
        """Put the averaged weights into the module and return it, for evaluation."""
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(self.average[n])
        return self.module.eval()
