"""How likely latents are as the noise that images start from, and how near two images are."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def log_likelihood(noise: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Return log N(noise; 0, I) in nats per dimension; of true noise it is -(1 + log 2π) / 2 = -1.419 on average."""
    return -0.5 * (noise.double().flatten(1).square().mean(1) + math.log(2 * math.pi))


def norm_quantile(noise: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Return the share of true noise with a smaller norm, by the chi distribution: 0 to 1, uniform for true noise."""
    flat = noise.double().flatten(1)
    half = torch.full((len(flat),), flat.shape[1] / 2, dtype=torch.float64, device=flat.device)
    return torch.special.gammainc(half, flat.square().sum(1) / 2)


def psnr(images: Float[Tensor, "n ..."], others: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Return the peak signal-to-noise ratio of each pair of images in [0, 1], dB; at most 120, for equal ones."""
    error = (images.double() - others.double()).flatten(1).square().mean(1)
    return -10 * error.clamp(min=1e-12).log10()
