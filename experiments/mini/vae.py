"""The autoencoder of mini: 64 × 64 × 3 pictures to 16 × 16 × 4 latents."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from efface.training.checkpoints import State
from experiments import network
from experiments.mini.scenes import Scenes

KL = 2e-4  # per latent element: below 1e-3 edges stay sharp


def autoencoder() -> AutoencoderKL:
    """Return an untrained `AutoencoderKL` of mini's shape (about 1.6 M parameters)."""
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 48, 96),
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels, on their slopes (edges), and on the half-size picture."""
    edges = sum((a - b).abs().mean() for a, b in zip(_slopes(output), _slopes(target), strict=True))
    return (output - target).abs().mean() + edges + F.l1_loss(F.avg_pool2d(output, 2), F.avg_pool2d(target, 2))


def train(scenes: Scenes, folder: Path, steps: int, batch: int = 8, lr: float = 1e-3) -> State:
    """Train the autoencoder on a pool of scenes; resumes from `folder`/vae.safetensors."""
    torch.manual_seed(0)
    vae: Any = autoencoder()  # NCHW: group norm backward is slow on channels_last
    network.attention(vae)

    def loss(g: torch.Generator, _: int) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=g)
        target = scenes.pixels[rows].float() / 127.5 - 1
        with network.bfloat16():
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample(generator=g)).sample
        kl = posterior.kl().mean() / (4 * 16 * 16)
        return reconstruction(output.float(), target) + KL * kl

    return network.train(vae, folder / "vae.safetensors", loss, steps, lr=lr, weight_decay=1e-4)
