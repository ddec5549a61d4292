"""The denoiser of mini, trained on latents of scenes with min-SNR weights."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from efface.training.checkpoints import State
from efface.util.progress import progress
from experiments import network
from experiments.mini.captions import captions
from experiments.mini.scenes import Scenes
from experiments.mini.text import WIDTH

WRONG = 0.4  # share of captions that belong to another picture: what makes guidance matter, as web captions do


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


def train(
    scenes: Scenes, latents: Tensor, scale: float, words, text, folder: Path, steps: int, batch: int = 16,
    lr: float = 8e-4, wrong: float = WRONG,
) -> State:  # fmt: skip
    """Train the denoiser; resumes from `folder`/unet.safetensors. `scale` brings latents to unit deviation."""
    torch.manual_seed(2)
    unet: Any = denoiser().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.attention(unet)
    schedule = noise_schedule()
    add_noise: Any = schedule.add_noise
    alphas = schedule.alphas_cumprod
    weight = (5.0 * (1 - alphas) / alphas).clamp(max=1.0)  # min-SNR-5 for epsilon: min(snr, 5) / snr

    def loss(g: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes), (batch,), generator=g)
        prompts = captions(scenes.rows(rows), g, wrong=wrong)
        ids = words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        mean, std = latents[rows].float().chunk(2, 1)
        z = scale * (mean + 0.2 * std * torch.randn(mean.shape, generator=g))
        t = torch.randint(1000, (batch,), generator=g)
        eps = torch.randn(z.shape, generator=g)
        with network.bfloat16():
            with torch.no_grad():
                context = text(input_ids=ids).last_hidden_state
            predicted = unet(add_noise(z, eps, t), t, context).sample
        return (weight[t] * F.mse_loss(predicted.float(), eps, reduction="none").mean((1, 2, 3))).mean()

    return network.train(unet, folder / "unet.safetensors", loss, steps, lr=lr)
