"""Training pictures: drawings placed, styled and brought to 64 × 64, with what they show."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from efface.util.progress import progress
from experiments.mini.artwork import SETS, SIZE, drawings
from experiments.mini.nouns import NAMES
from experiments.mini.styles import STYLES, plain

PIXELS = 64
STYLE_NAMES = ("", *STYLES)  # index 0: unstyled, the artists' own colours
INK_SETS = {art.name for art in SETS if art.kind == "ink"}
MIRRORED_BADLY = {"taxi", "radio", "gas pump", "bus"}  # lettering


@dataclass(frozen=True)
class Pictures:
    """A pool of pictures: pixels in [0, 255], and the object, style and artist each shows."""

    pixels: UInt8[Tensor, "n 3 64 64"]
    objects: Int[Tensor, " n"]  # index into NAMES
    styles: Int[Tensor, " n"]  # index into STYLE_NAMES
    artists: Int[Tensor, " n"]  # index into SETS

    def __len__(self) -> int:
        return len(self.objects)

    def where(self, keep: Tensor) -> "Pictures":
        """Return the pictures that a boolean mask or an index tensor selects."""
        return Pictures(self.pixels[keep], self.objects[keep], self.styles[keep], self.artists[keep])


def _place(rgba: Float[Tensor, "b 4 h w"], g: torch.Generator, strength: float, mirror: Tensor) -> Tensor:
    """Shift, scale and turn a little: ±4 % shift, 0.86 to 1.04 scale, ±6° at strength 1."""
    b = len(rgba)
    u = lambda lo, hi: lo + (hi - lo) * torch.rand(b, generator=g)  # noqa: E731
    angle = u(-1, 1) * math.radians(6 * strength)
    scale = 1 / (0.95 + u(-0.09, 0.07) * strength)
    flip = torch.where(mirror & (torch.rand(b, generator=g) < 0.5), -1.0, 1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    dx, dy = u(-0.07, 0.07) * strength, u(-0.07, 0.07) * strength
    theta = torch.stack([torch.stack([cos * flip, -sin, dx], 1), torch.stack([sin * flip, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False, padding_mode="zeros")


def _ground(b: int, g: torch.Generator) -> Tensor:
    """Backgrounds: white for half the pictures, else a pale tint."""
    tint = 1 - 0.16 * torch.rand(b, 3, generator=g)
    white = (torch.rand(b, 1, generator=g) < 0.5).float()
    return (white + (1 - white) * tint).view(b, 3, 1, 1)


def make(
    drawn: dict, copies: int, seed: int, strength: float = 1.0, sets: set[str] | None = None, jitter: float = 0.0,
    flips: bool = True,
) -> Pictures:  # fmt: skip
    """Compose `copies` pictures of every (drawing, style), each placed anew.

    `strength` scales how far they are moved, `jitter` varies brightness and hue, `sets` restricts the artists.
    """
    g = torch.Generator().manual_seed(seed)
    parts = []
    set_index = {art.name: i for i, art in enumerate(SETS)}
    for (name, art), rgba in progress(list(drawn.items()), "composing pictures"):
        if name not in NAMES or (sets is not None and art not in sets):
            continue
        image = torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255
        image = torch.cat([image[:, :3] * image[:, 3:], image[:, 3:]], 1).expand(copies, -1, -1, -1)
        for index, style in enumerate(STYLE_NAMES):
            if (art in INK_SETS) != (style == "ink"):
                continue
            mirror = torch.full((copies,), flips and name not in MIRRORED_BADLY)
            placed = _place(image, g, strength, mirror)
            rgb, alpha = placed[:, :3], placed[:, 3:]
            if jitter:
                gain = 1 + jitter * (torch.rand(copies, 3, 1, 1, generator=g) - 0.5)
                rgb = torch.minimum(rgb * gain, alpha)
            picture = STYLES.get(style, plain)(rgb, alpha, _ground(copies, g))
            picture = F.avg_pool2d(picture, SIZE // PIXELS).clamp(0, 1)
            row = lambda value: torch.full((copies,), value)  # noqa: E731
            parts.append(((picture * 255).round().byte(), row(NAMES.index(name)), row(index), row(set_index[art])))
    return Pictures(*(torch.cat(column) for column in zip(*parts, strict=True)))


def pool(folder: Path, copies: int, seed: int, **options) -> Pictures:
    """Compose the pictures of every drawing fetched into `folder` (see `make`)."""
    return make(drawings(folder), copies, seed, **options)
