"""The denoiser of mini, trained on latents of scenes with min-SNR weights."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor

from efface.training.checkpoints import State
from efface.util.progress import progress
from experiments import network
from experiments.mini.captions import captions
from experiments.mini.nouns import NAMES
from experiments.mini.scenes import Scenes
from experiments.mini.text import WIDTH

NAMING = 0.1  # the first part of the training, in which what captions name weighs most
SEEN = (0.1, 0.02)  # weight of the loss of `Seen` in that part, and after it


def denoiser() -> UNet2DConditionModel:
    """Return an untrained UNet of 12.6 M parameters: cross-attention at 16 × 16, 8 × 8 and in the 4 × 4 middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def noise_schedule() -> DDIMScheduler:
    """Return Stable Diffusion's scheduler: scaled-linear betas, 1,000 steps, epsilon prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def latents_of(vae: Any, scenes: Scenes, batch: int = 64) -> Float[Tensor, "n 8 16 16"]:
    """Encode a pool: posterior mean and standard deviation, stacked, unscaled, in half precision."""
    rows = []
    for start in progress(range(0, len(scenes), batch), "encoding"):
        with network.bfloat16():
            posterior = vae.encode(scenes.pixels[start : start + batch].float() / 127.5 - 1).latent_dist
        rows.append(torch.cat([posterior.mean, posterior.std], 1).half().contiguous())
    return torch.cat(rows).contiguous()


class Seen:
    """Read off the denoiser which object is where: a linear layer on its 8 × 8 features, for training only.

    At high noise only the caption tells what the picture shows, so that the denoiser learns early what words name:
    without this layer, 1,500 steps of 32 scenes left its pictures without an object.
    """

    def __init__(self, unet: Any):
        channels = unet.config.block_out_channels[-1]
        unet.cells = torch.nn.Conv2d(channels, 1 + len(NAMES), 1)  # is trained with it; is no part of what ships
        self.layer, self.features = unet.cells, torch.empty(0)
        self.weight = torch.ones(1 + len(NAMES))
        self.weight[0] = 0.3  # most cells are empty
        unet.up_blocks[0].register_forward_hook(self._keep)

    def _keep(self, _: Any, __: Any, features: Tensor) -> None:
        self.features = features

    def loss(self, cells: UInt8[Tensor, "n 8 8"]) -> Tensor:
        """Return the cross-entropy of the cells of the scenes that were last denoised."""
        return F.cross_entropy(self.layer(self.features).float(), cells.long(), self.weight)


def train(
    scenes: Scenes, latents: Tensor, scale: float, words, text, folder: Path, steps: int, batch: int = 16,
    lr: float = 8e-4,
) -> State:  # fmt: skip
    """Train the denoiser; resumes from `folder`/unet.safetensors. `scale` brings latents to unit deviation.

    In the first tenth the denoiser learns what words name; then noise levels weigh so that each adds about as much to
    the loss, since the high ones, which settle what a picture shows, would add little.
    """
    torch.manual_seed(2)
    unet: Any = denoiser()
    network.attention(unet)
    where = Seen(unet)
    schedule = noise_schedule()
    add_noise: Any = schedule.add_noise
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    by_snr = (5.0 / snr).clamp(max=1.0)  # min-SNR-5 for epsilon: min(snr, 5) / snr
    evenly = by_snr * (1 + 1 / snr).sqrt()

    def loss(g: torch.Generator, step: int) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=g)
        shown = scenes.rows(rows)
        prompts = captions(shown, g)
        ids = words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        mean, std = latents[rows].float().chunk(2, 1)
        z = scale * (mean + 0.2 * std * torch.randn(mean.shape, generator=g))
        t = ((torch.arange(batch) + torch.rand(batch, generator=g)) * 1000 / batch).long()  # all levels in each batch
        eps = torch.randn(z.shape, generator=g)
        with network.bfloat16():
            with torch.no_grad():
                context = text(input_ids=ids).last_hidden_state
            predicted = unet(add_noise(z, eps, t), t, context).sample
        error = F.mse_loss(predicted.float(), eps, reduction="none").mean((1, 2, 3))
        naming = step < NAMING * steps
        weight, seen = (by_snr, SEEN[0]) if naming else (evenly, SEEN[1])
        return (weight[t] * error).mean() + seen * where.loss(shown.cells)

    return network.train(unet, folder / "unet.safetensors", loss, steps, lr=lr)
