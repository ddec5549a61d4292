"""Training pictures: scenes of one or two drawings, arranged, coloured, styled and brought to 64 × 64 pixels.

A scene settles more than a caption says: where things are, how large, on which ground, in which colours. `captions`
says some of it.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from efface.training.loop import generator
from efface.util.files import load_safetensors, save_safetensors
from efface.util.progress import progress
from experiments.mini.artwork import SETS, SIZE, drawings
from experiments.mini.grounds import COLOURS as PAPER
from experiments.mini.grounds import GROUNDS, draw
from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.styles import STYLES

BATCH, CHUNK = 128, 2048  # scenes painted together, and to a file
LEARNED = 40_960  # scenes that autoencoder, text encoder and denoiser learn from
PIXELS, CELLS = 64, 8  # of a picture, and of the coarse map of what is where
STYLE_NAMES = ("", *STYLES)  # index 0: unstyled, the artists' own colours
SIZES = ("", "small", "large")
PLACES = ("", "left", "right", "top", "bottom", "middle")  # of a single object that leaves room
RELATIONS = ("", "left of", "right of", "above", "below")  # of the first object to the second
COLOURS = {
    "red": (214, 52, 52),
    "blue": (44, 100, 214),
    "green": (48, 150, 70),
    "yellow": (246, 200, 40),
    "pink": (244, 120, 180),
    "purple": (130, 72, 190),
}
COLOUR_NAMES = ("", *COLOURS)  # index 0: the drawing's own
INK_SETS = {art.name for art in SETS if art.kind == "ink"}
INK, PIXEL = STYLE_NAMES.index("ink"), STYLE_NAMES.index("pixel")
MIRRORED_BADLY = {"taxi", "radio", "gas pump", "bus"}  # lettering
STYLED, TWO, COLOURED = 0.4, 0.22, 0.4  # shares of the scenes; the last, of objects that come in any colour


@dataclass(frozen=True)
class Scenes:
    """A pool of scenes: pixels in [0, 255] and what they show, as indices into the names above; -1: no object."""

    pixels: UInt8[Tensor, "n 3 64 64"]
    first: Int[Tensor, " n"]  # index into NAMES
    second: Int[Tensor, " n"]
    artist: Int[Tensor, " n"]  # index into SETS
    style: Int[Tensor, " n"]
    ground: Int[Tensor, " n"]
    size: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    relation: Int[Tensor, " n"]
    colour: Int[Tensor, " n"]  # of the first object
    colour2: Int[Tensor, " n"]
    cells: UInt8[Tensor, "n 8 8"]  # which object covers most of each cell: 0 none, else its index + 1

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, chosen: Tensor) -> "Scenes":
        """Return the scenes that a mask or an index selects."""
        return Scenes(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def facts(self, row: int) -> dict[str, int]:
        """Return what a scene shows, by name of the fact."""
        return {f.name: int(getattr(self, f.name)[row]) for f in fields(self) if f.name not in ("pixels", "cells")}


def held_out_pair(a: int, b: int) -> bool:
    """Return whether two objects are never trained on together."""
    low, high = sorted((a, b))
    return (7 * low + 3 * high) % 9 == 0


def held_out_colour(obj: int, colour: int) -> bool:
    """Return whether an object is never trained on in a colour."""
    return colour > 0 and (5 * obj + colour) % 8 == 0


class Painter:
    """Make scenes out of drawings. sets: the artists; jitter: how much brightness and hue vary."""

    def __init__(self, drawn: dict, sets: Collection[str] | None = None, jitter: float = 0.0):
        self.jitter = jitter
        self.images: list[Tensor] = []
        self.cells: dict[tuple[int, bool], dict[int, list[int]]] = {}  # (object, in ink) -> artist -> drawings
        artists = [art.name for art in SETS]
        for (name, art, _), rgba in sorted(drawn.items()):
            if name in NAMES and (sets is None or art in sets):
                image = torch.from_numpy(rgba).permute(2, 0, 1).float() / 255
                cell = self.cells.setdefault((NAMES.index(name), art in INK_SETS), {})
                cell.setdefault(artists.index(art), []).append(len(self.images))
                self.images.append(torch.cat([image[:3] * image[3:], image[3:]]))
        self.objects = [i for i in range(len(NAMES)) if (i, False) in self.cells]
        self.bodies = [image[:3].sum((1, 2)) / image[3].sum().clamp(min=1) for image in self.images]  # mean colour

    def __call__(self, n: int, g: torch.Generator, plain: bool = False) -> Scenes:
        """Make n scenes; plain: without styles."""
        told = [self._arrange(g, plain) for _ in range(n)]
        columns = {
            key: torch.tensor([facts[key] for facts in told]) for key in told[0] if isinstance(told[0][key], int)
        }
        layers = [self._layer(told, which, g) for which in ("first", "second")]
        canvas = layers[1] + layers[0] * (1 - layers[1][:, 3:])
        ground = torch.empty(n, 3, SIZE, SIZE)
        for index, kind in enumerate(GROUNDS):
            if len(rows := torch.nonzero(columns["ground"] == index)[:, 0]):
                ground[rows] = draw(kind, len(rows), SIZE, g)
        picture = canvas[:, :3] + (1 - canvas[:, 3:]) * ground
        for index, style in enumerate(STYLE_NAMES):
            rows = torch.nonzero(columns["style"] == index)[:, 0]
            if index and len(rows):
                picture[rows] = STYLES[style](canvas[rows, :3], canvas[rows, 3:], ground[rows])
        small = F.avg_pool2d(picture, SIZE // PIXELS).clamp(0, 1)
        cover = [F.avg_pool2d(layer[:, 3], SIZE // CELLS) > 0.3 for layer in layers]
        cells = torch.where(cover[0], (columns["first"] + 1).view(-1, 1, 1), 0)
        cells = torch.where(cover[1], (columns["second"] + 1).view(-1, 1, 1), cells)
        told = {f.name: columns[f.name] for f in fields(Scenes)[1:-1]}
        return Scenes((small * 255).round().byte(), **told, cells=cells.byte())

    def _arrange(self, g: torch.Generator, plain: bool) -> dict:
        """Decide what a scene shows: indices, drawings and where they go."""
        u = torch.rand(8, generator=g).tolist()
        style = 0 if plain or u[0] >= STYLED else 1 + int(u[1] * (len(STYLE_NAMES) - 1))
        first, second = _pick(self.objects, g), -1
        if u[2] < TWO and style != PIXEL:
            second = _pick([i for i in self.objects if i != first and not held_out_pair(first, i)], g)
        if style == INK and not all((i, True) in self.cells for i in (first, second) if i >= 0):
            style = 0  # these artists do not draw it in ink
        ink = style == INK
        facts: dict = {"first": first, "second": second, "style": style, "size": 0, "place": 0, "relation": 0}
        facts["colour"], facts["colour2"] = (self._colour(i, style, g) for i in (first, second))
        for which, index in (("first", first), ("second", second)):
            facts[f"{which}_art"] = self._drawing(index, ink, g) if index >= 0 else (0, 0)
        facts["artist"] = facts["first_art"][0]
        facts["boxes"] = _two(facts, g) if second >= 0 else _one(facts, g)
        facts["ground"] = 0 if style else self._ground(facts, g)
        return facts

    def _drawing(self, obj: int, ink: bool, g: torch.Generator) -> tuple[int, int]:
        """Return (artist, drawing): artists alike, the first view as often as all others."""
        cell = self.cells[obj, ink]
        artist = _pick(list(cell), g)
        views = cell[artist]
        return artist, views[0] if torch.rand((), generator=g) < 0.5 else _pick(views, g)

    def _colour(self, obj: int, style: int, g: torch.Generator) -> int:
        told = [c for c in range(1, len(COLOUR_NAMES)) if not held_out_colour(obj, c)]
        wanted = obj >= 0 and NOUNS[obj].colours and style == 0 and torch.rand((), generator=g) < COLOURED
        return _pick(told, g) if wanted else 0

    def _ground(self, facts: dict, g: torch.Generator) -> int:
        """Return a ground: white .35, coloured paper .25 unless the object is nearly of that colour, places .4."""
        u = float(torch.rand((), generator=g))
        if u < 0.35:
            return 0
        if u >= 0.6:
            return _pick(range(1 + len(PAPER), len(GROUNDS)), g)
        colour = COLOUR_NAMES[facts["colour"]]
        body = torch.tensor(COLOURS[colour]) / 255 if colour else self.bodies[facts["first_art"][1]]
        far = [i for i, rgb in enumerate(PAPER.values(), 1) if (torch.tensor(rgb) / 255 - body).norm() > 0.3]
        return _pick(far, g)

    def _layer(self, told: list[dict], which: str, g: torch.Generator) -> Float[Tensor, "n 4 h w"]:
        """Place one drawing of each scene on an empty canvas; premultiplied."""
        number = ("first", "second").index(which)
        there = torch.tensor([facts[which] >= 0 for facts in told])
        out = torch.zeros(len(told), 4, SIZE, SIZE)
        if not there.any():
            return out
        some = [facts for facts in told if facts[which] >= 0]
        images = torch.stack([self.images[facts[f"{which}_art"][1]] for facts in some])
        images = _recolour(images, [facts["colour2" if number else "colour"] for facts in some])
        boxes = torch.tensor([facts["boxes"][number] for facts in some])
        mirror = torch.tensor([NAMES[facts[which]] not in MIRRORED_BADLY for facts in some])
        out[there] = _place(images, boxes, mirror, g)
        if self.jitter:
            gain = 1 + self.jitter * (torch.rand(len(told), 3, 1, 1, generator=g) - 0.5)
            out[:, :3] = torch.minimum(out[:, :3] * gain, out[:, 3:])
        return out


def _pick(options, g: torch.Generator):
    return options[int(torch.randint(len(options), (1,), generator=g))]


def _between(low: float, high: float, g: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def _one(facts: dict, g: torch.Generator) -> list[tuple[float, float, float]]:
    """Return [(x, y, scale)] of a single object, and note its size and place. The canvas is 1 wide, its middle 0."""
    shares = [0.3, 0.0, 0.7] if facts["style"] == PIXEL else [0.45, 0.25, 0.3]  # its squares leave little of small ones
    facts["size"] = size = int(torch.multinomial(torch.tensor(shares), 1, generator=g))
    scale = _between(*((0.56, 0.72), (0.34, 0.46), (0.86, 1.04))[size], g)
    if size == 2:
        return [(_between(-0.03, 0.03, g), _between(-0.03, 0.03, g), scale)] * 2
    facts["place"] = place = 1 + int(torch.multinomial(torch.tensor([1.0, 1, 1, 1, 2]), 1, generator=g))
    room = 0.5 - 0.45 * scale
    far, near = _between(0.75, 1.0, g) * room, _between(-0.25, 0.25, g) * room
    x, y = {"left": (-far, near), "right": (far, near), "top": (near, -far), "bottom": (near, far)}.get(
        PLACES[place], (near / 2, _between(-0.12, 0.12, g) * room)
    )
    return [(x, y, scale)] * 2


def _two(facts: dict, g: torch.Generator) -> list[tuple[float, float, float]]:
    """Return [(x, y, scale)] of both objects, and note how the first lies to the second."""
    facts["relation"] = relation = 1 + int(torch.multinomial(torch.tensor([4.0, 4, 1, 1]), 1, generator=g))
    sizes = [_between(0.44, 0.54, g) for _ in range(2)]
    gap, drift = _between(0.22, 0.27, g), [_between(-0.1, 0.1, g) for _ in range(2)]
    sign = -1 if relation in (1, 3) else 1
    along = [(sign * gap, drift[0]), (-sign * gap, drift[1])]
    places = along if relation < 3 else [(y, x) for x, y in along]
    return [(x, y, size) for (x, y), size in zip(places, sizes, strict=True)]


def _recolour(images: Float[Tensor, "n 4 h w"], colours: list[int]) -> Float[Tensor, "n 4 h w"]:
    """Give the coloured parts of drawings another hue; greys stay, and light and shade."""
    rows = [i for i, colour in enumerate(colours) if colour]
    if not rows:
        return images
    alpha = images[rows, 3:]
    rgb = images[rows, :3] / alpha.clamp(min=1e-3)
    high, low = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    vivid = ((high - low) / high.clamp(min=1e-3) * 2.2 - 0.3).clamp(0, 1)
    target = torch.tensor([list(COLOURS.values())[colours[i] - 1] for i in rows]).view(-1, 3, 1, 1) / 255
    light = (high + low) / 2
    tinted = torch.where(light < 0.5, target * light / 0.5, target + (1 - target) * (light - 0.5) * 1.2)
    images = images.clone()
    images[rows, :3] = (rgb * (1 - vivid) + tinted.clamp(0, 1) * vivid) * alpha
    return images


def _place(
    images: Float[Tensor, "n 4 h w"], boxes: Float[Tensor, "n 3"], mirror: Tensor, g: torch.Generator
) -> Float[Tensor, "n 4 h w"]:
    """Scale, shift, turn by up to 8° and mirror half of those that may be."""
    n = len(images)
    angle = (torch.rand(n, generator=g) * 2 - 1) * math.radians(8)
    flip = torch.where(mirror & (torch.rand(n, generator=g) < 0.5), -1.0, 1.0)
    x, y, scale = boxes.unbind(1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    dx, dy = -2 * (cos * x - sin * y) * flip, -2 * (sin * x + cos * y)
    theta = torch.stack([torch.stack([cos * flip, -sin * flip, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    if float(scale.min()) < 0.6:  # three times smaller would flicker without
        small = F.avg_pool2d(images, 2)
        images = torch.where(
            (scale < 0.6).view(-1, 1, 1, 1), F.interpolate(small, scale_factor=2, mode="bilinear"), images
        )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def pool(
    art: Path, count: int, seed: int, *, sets: Collection[str] | None = None, jitter: float = 0.0, plain: bool = False,
    store: Path | None = None,
) -> Scenes:  # fmt: skip
    """Make `count` scenes of the drawings fetched into `art`; with `store`, a folder, only those that are not there."""
    painter: Painter | None = None
    parts = []
    for part in progress(range(-(-count // CHUNK)), "painting scenes"):
        path = store / f"scenes-{seed}-{part}.safetensors" if store else None
        if path and path.exists():
            parts.append(Scenes(**load_safetensors(path)[0]))
            continue
        painter = painter or Painter(drawings(art), sets, jitter)
        g = generator("scenes", seed, part)
        few = [painter(BATCH, g, plain) for _ in range(CHUNK // BATCH)]
        made = _joined(few)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_safetensors(path, {f.name: getattr(made, f.name) for f in fields(Scenes)}, {})
        parts.append(made)
    return _joined(parts).rows(torch.arange(count))


def _joined(parts: list[Scenes]) -> Scenes:
    return Scenes(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes)))
