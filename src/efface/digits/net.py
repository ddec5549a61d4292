"""The networks: a small UNet that reads one context token of 8 numbers, and the classifier that judges its digits."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 8  # numbers in a prompt
SIDE = 28  # pixels


class Block(nn.Module):
    """Two 3 × 3 convolutions around a scale and a shift that time and prompt give, plus a skip."""

    def __init__(self, inputs: int, outputs: int, emb: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.film = nn.Linear(emb, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b i h w"], emb: Float[Tensor, "b emb"]) -> Float[Tensor, "b o h w"]:
        """Return the block's output for features and the embedding of (t, c)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class DigitUNet(ModelMixin, ConfigMixin):
    """Predict v from x_t, t and one context token of 8 numbers; a zero token means no prompt.

    Attention over a single token adds the same vector everywhere, so the token goes where the time goes: into the
    scale and shift of every block. Half of the pixels' resolution is folded into channels at the entrance.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False  # `enable_gradient_checkpointing` sets it
    attn_processors: dict[str, Any] = {}  # noqa: RUF012  it has no attention

    @register_to_config
    def __init__(
        self,
        sample_size: int = SIDE,
        in_channels: int = 1,
        channels: tuple[int, int] = (32, 64),
        cross_attention_dim: int = WIDTH,
        emb: int = 128,
        groups: int = 8,
    ):
        super().__init__()
        wide, deep = channels
        self.time = nn.Sequential(nn.Linear(64, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.context = nn.Sequential(nn.Linear(cross_attention_dim, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.enter = nn.Conv2d(4 * in_channels, wide, 3, padding=1)
        self.down1 = Block(wide, wide, emb, groups)
        self.down2 = Block(wide, wide, emb, groups)
        self.shrink = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.down3 = Block(deep, deep, emb, groups)
        self.mid1 = Block(deep, deep, emb, groups)
        self.mid2 = Block(deep, deep, emb, groups)
        self.up3 = Block(2 * deep, deep, emb, groups)
        self.grow = nn.Conv2d(deep, wide, 1)
        self.up2 = Block(2 * wide, wide, emb, groups)
        self.up1 = Block(2 * wide, wide, emb, groups)
        self.norm = nn.GroupNorm(groups, wide)
        self.leave = nn.Conv2d(wide, 4 * in_channels, 3, padding=1)

    def set_attn_processor(self, processor: Any) -> None:
        """Do nothing: it has no attention."""

    def forward(
        self,
        sample: Float[Tensor, "b ch h w"],
        timestep: Tensor | float | int,
        encoder_hidden_states: Float[Tensor, "b 1 dim"],
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "b ch h w"]]:
        """Return (prediction,); timestep: 0 to 999, one or one per image."""
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        emb = F.silu(self.time(sinusoidal_embedding(t).to(sample.dtype)) + self.context(encoder_hidden_states[:, 0]))
        x1 = self._run(self.down1, self.enter(F.pixel_unshuffle(sample, 2)), emb)
        x2 = self._run(self.down2, x1, emb)
        x3 = self._run(self.down3, self.shrink(x2), emb)
        h = self._run(self.mid2, self._run(self.mid1, x3, emb), emb)
        h = self._run(self.up3, torch.cat([h, x3], 1), emb)
        h = F.interpolate(self.grow(h), scale_factor=2, mode="nearest")
        h = self._run(self.up2, torch.cat([h, x2], 1), emb)
        h = self._run(self.up1, torch.cat([h, x1], 1), emb)
        return (F.pixel_shuffle(self.leave(F.silu(self.norm(h))), 2),)

    def _run(self, block: Block, h: Tensor, emb: Tensor) -> Tensor:
        recompute = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        if recompute is not None and torch.is_grad_enabled():
            return recompute(block, h, emb)
        return block(h, emb)


def sinusoidal_embedding(t: Tensor, width: int = 64) -> Float[Tensor, "b width"]:
    """Return sines and cosines of timesteps at geometric frequencies from 1 to 1e-4."""
    rates = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(1e4) / (width // 2)))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Classifier(nn.Module):
    """Name the digit in a picture (b, 1, 28, 28) of pixels in [-1, 1]; returns logits."""

    def __init__(self, classes: int = 10, width: int = 24):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * width * 16, classes))

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b classes"]:
        """Return the logits of every class."""
        return self.head(self.body(x))
