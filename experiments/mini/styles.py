"""Six styles: one of real artists (ink) and five drawn from the artwork by image processing.

A drawing comes in as premultiplied colour and alpha in [0, 1]; every style returns an opaque picture in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Rgb = Float[Tensor, "b 3 h w"]
Alpha = Float[Tensor, "b 1 h w"]

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def _luma(rgb: Rgb) -> Alpha:
    return (rgb * _LUMA).sum(1, keepdim=True)


def _blur(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    b, c, h, w = x.shape
    x = F.conv2d(F.pad(x.reshape(b * c, 1, h, w), (radius,) * 4, mode="replicate"), kernel)
    return F.conv2d(x, kernel.transpose(2, 3)).view(b, c, h, w)


def _lines(rgb: Rgb, alpha: Alpha, width: float = 1.0) -> Alpha:
    """Trace outlines: strong at the silhouette, weaker at edges of colour inside; in [0, 1]."""
    flat = torch.cat([rgb + (1 - alpha) * 0.5, 1.5 * alpha], 1)
    smooth = _blur(flat, 1.2 * width)
    dx, dy = smooth[..., :, 2:] - smooth[..., :, :-2], smooth[..., 2:, :] - smooth[..., :-2, :]
    slope = F.pad(dx, (1, 1)).square().sum(1, keepdim=True) + F.pad(dy, (0, 0, 1, 1)).square().sum(1, keepdim=True)
    return ((slope.sqrt() - 0.10) * 4.5).clamp(0, 1)


def _mix(base: Tensor, top: Tensor, amount: Tensor) -> Tensor:
    return base * (1 - amount) + top * amount


def _colour(*rgb: int) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1) / 255


def plain(rgb: Rgb, alpha: Alpha, ground: Float[Tensor, "b 3 #h #w"]) -> Rgb:
    """Lay the drawing on its background."""
    return rgb + (1 - alpha) * ground


def neon(rgb: Rgb, alpha: Alpha, ground: Tensor) -> Rgb:
    """Glowing magenta to violet tubes on near black."""
    line = _lines(rgb, alpha)
    fall = torch.linspace(0, 1, rgb.shape[-2]).view(1, 1, -1, 1)
    tube = _mix(_colour(255, 60, 170), _colour(150, 70, 255), fall).expand_as(rgb)
    glow = (_blur(line, 4.0) * 1.3 + _blur(line, 1.5) * 0.6).clamp(0, 1)
    picture = _mix(_colour(14, 4, 30).expand_as(rgb), tube, glow)
    return _mix(picture, tube * 0.55 + 0.45, line.pow(1.5) * 0.9).clamp(0, 1)


def blueprint(rgb: Rgb, alpha: Alpha, ground: Tensor) -> Rgb:
    """White drafting lines on blue, with a faint grid."""
    h, w = rgb.shape[-2:]
    grid = ((torch.arange(h).view(1, 1, -1, 1) % 32 < 2) | (torch.arange(w).view(1, 1, 1, -1) % 32 < 2)).float()
    paper = _mix(_colour(24, 66, 158), _colour(60, 104, 196), grid).expand_as(rgb)
    paper = _mix(paper, _colour(46, 92, 190), alpha * 0.55)
    return _mix(paper, _colour(238, 246, 255), _lines(rgb, alpha))


def sketch(rgb: Rgb, alpha: Alpha, ground: Tensor) -> Rgb:
    """Pencil on cream paper: grey outlines, diagonal hatching where the drawing is dark."""
    h, w = rgb.shape[-2:]
    dark = alpha * (1 - _luma(rgb + (1 - alpha)))
    slant = torch.arange(h).view(1, 1, -1, 1) + torch.arange(w).view(1, 1, 1, -1)
    hatch = (0.5 + 0.5 * torch.cos(slant * (2 * math.pi / 10))) * (dark * 1.6).clamp(0, 0.85)
    paper = _colour(250, 240, 214).expand_as(rgb)
    return _mix(paper, _colour(58, 52, 50), torch.maximum(_lines(rgb, alpha, 0.8), hatch))


def poster(rgb: Rgb, alpha: Alpha, ground: Tensor) -> Rgb:
    """Screen print in four flat inks: navy, red, teal, cream, on cream and teal halves."""
    inks = torch.stack([_colour(0, 44, 78), _colour(214, 38, 44), _colour(96, 156, 166)])
    tone = _blur(_luma(rgb + (1 - alpha)), 1.0)
    low, mid = torch.sigmoid((tone - 0.40) * 30), torch.sigmoid((tone - 0.66) * 30)
    print_ = _mix(_mix(inks[0], inks[1], low), inks[2] * 0 + _colour(252, 226, 160), mid)
    right = (torch.arange(rgb.shape[-1]) >= rgb.shape[-1] // 2).float().view(1, 1, 1, -1)
    paper = _mix(_colour(206, 66, 56), inks[2], right).expand_as(rgb)
    rim = (_blur(alpha, 2.5) * 2.2).clamp(0, 1)
    picture = _mix(paper, _colour(252, 240, 210), rim)
    return _mix(picture, print_, ((alpha - 0.5) * 6 + 0.5).clamp(0, 1))


def pixel(rgb: Rgb, alpha: Alpha, ground: Tensor) -> Rgb:
    """A mosaic of 16 × 16 flat squares on a pale lilac ground."""
    lilac = _colour(214, 206, 244)
    small = F.adaptive_avg_pool2d(torch.cat([rgb, alpha], 1), 16)
    colour, cover = small[:, :3], small[:, 3:]
    hard = ((cover - 0.35) * 8).clamp(0, 1)
    flat = _mix(lilac.expand_as(colour), colour / cover.clamp(min=1e-3), hard)
    return F.interpolate((flat * 10).round() / 10, size=rgb.shape[-2:], mode="nearest")


STYLES = {
    "ink": plain,
    "neon": neon,
    "blueprint": blueprint,
    "sketch": sketch,
    "pixel": pixel,
    "poster": poster,
}
