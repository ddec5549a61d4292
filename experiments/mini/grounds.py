"""What a scene stands on: white, pale or coloured paper, and five places, drawn by a few lines of arithmetic."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = {
    "red": (226, 92, 82),
    "blue": (92, 150, 232),
    "green": (118, 196, 112),
    "yellow": (248, 216, 96),
    "pink": (246, 164, 204),
}
PLACES = ("grass", "sea", "night", "sand", "snow")
GROUNDS = ("", *COLOURS, *PLACES)  # index 0: white or a pale tint, which no caption names
Pictures = Float[Tensor, "n 3 size size"]


def draw(kind: str, n: int, size: int, g: torch.Generator) -> Pictures:
    """Return n grounds of a kind, each drawn anew, with values in [0, 1]."""
    if kind in COLOURS:
        shade = 0.92 + 0.16 * torch.rand(n, 1, 1, 1, generator=g)
        return (_rgb(COLOURS[kind]) * shade).clamp(0, 1).expand(n, 3, size, size)
    if kind in PLACES:
        return {"grass": _grass, "sea": _sea, "night": _night, "sand": _sand, "snow": _snow}[kind](n, size, g)
    tint = 1 - 0.16 * torch.rand(n, 3, generator=g)
    white = (torch.rand(n, 1, generator=g) < 0.5).float()
    return (white + (1 - white) * tint).view(n, 3, 1, 1).expand(n, 3, size, size)


def _rgb(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1) / 255


def _mix(a: Tensor, b: Tensor, amount: Tensor) -> Tensor:
    return a * (1 - amount) + b * amount


def _axes(size: int) -> tuple[Tensor, Tensor]:
    axis = torch.linspace(0, 1, size)
    return axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)


def _horizon(n: int, size: int, g: torch.Generator, low: float = 0.45, high: float = 0.72) -> tuple[Tensor, Tensor]:
    """Return (y of the horizon, 1 below it), with a soft edge and a slight swell."""
    x, y = _axes(size)
    at = low + (high - low) * torch.rand(n, 1, 1, 1, generator=g)
    swell = 0.02 * torch.sin(2 * math.pi * (x * (1 + torch.rand(n, 1, 1, 1, generator=g)) + at * 7))
    return at, ((y - at - swell) * size / 2 + 0.5).clamp(0, 1)


def _ripples(n: int, size: int, g: torch.Generator, turns: float) -> Tensor:
    """Return waves that run along x and get wider below, from -1 to 1."""
    x, y = _axes(size)
    phase = torch.rand(n, 1, 1, 1, generator=g) * 6
    return torch.sin(turns * (1.2 - 0.5 * y) * (y * 12 + 0.4 * torch.sin(x * 9 + phase) + phase))


def _grass(n: int, size: int, g: torch.Generator) -> Pictures:
    _, y = _axes(size)
    _, below = _horizon(n, size, g)
    blades = (torch.rand(n, 1, size // 4, size, generator=g) - 0.5).repeat_interleave(4, 2)
    green = _mix(_rgb((124, 200, 84)), _rgb((66, 150, 52)), y.expand(n, 1, size, size)) + 0.12 * blades
    sky = _mix(_rgb((176, 220, 250)), _rgb((232, 244, 252)), y.expand(n, 1, size, size))
    return _mix(sky, green, below).clamp(0, 1)


def _sea(n: int, size: int, g: torch.Generator) -> Pictures:
    _, y = _axes(size)
    _, below = _horizon(n, size, g)
    waves = (_ripples(n, size, g, 5.0) - 0.72).clamp(0, 1) * 2.4
    water = _mix(_rgb((40, 134, 196)), _rgb((16, 78, 150)), y.expand(n, 1, size, size))
    water = _mix(water, _rgb((214, 240, 250)), waves.clamp(0, 0.8))
    sky = _mix(_rgb((150, 208, 246)), _rgb((250, 240, 224)), y.expand(n, 1, size, size))
    return _mix(sky, water, below).clamp(0, 1)


def _night(n: int, size: int, g: torch.Generator) -> Pictures:
    _, y = _axes(size)
    sky = _mix(_rgb((14, 18, 58)), _rgb((58, 48, 112)), y.expand(n, 1, size, size))
    few = torch.rand(n, 1, size // 2, size // 2, generator=g)
    stars = (few > 0.985).float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    return _mix(sky, _rgb((255, 248, 214)), stars * (0.5 + 0.5 * torch.rand(n, 1, 1, 1, generator=g)))


def _sand(n: int, size: int, g: torch.Generator) -> Pictures:
    _, y = _axes(size)
    _, below = _horizon(n, size, g)
    dunes = _ripples(n, size, g, 3.0)
    sand = _mix(_rgb((240, 208, 140)), _rgb((214, 170, 98)), (0.5 + 0.35 * dunes) * y)
    sky = _mix(_rgb((250, 226, 176)), _rgb((255, 244, 220)), y.expand(n, 1, size, size))
    return _mix(sky, sand, below).clamp(0, 1)


def _snow(n: int, size: int, g: torch.Generator) -> Pictures:
    _, y = _axes(size)
    _, below = _horizon(n, size, g)
    sky = _mix(_rgb((122, 146, 176)), _rgb((186, 202, 220)), y.expand(n, 1, size, size))
    white = _mix(_rgb((248, 250, 255)), _rgb((220, 230, 244)), y.expand(n, 1, size, size))
    few = torch.rand(n, 1, size // 4, size // 4, generator=g)
    flakes = torch.nn.functional.interpolate((few > 0.93).float(), size=size, mode="bilinear")
    return _mix(_mix(sky, white, below), _rgb((255, 255, 255)), flakes.clamp(0, 1))
