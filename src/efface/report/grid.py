"""Labelled image grids: rows are prompts, columns are models or edits, a cell has one image per seed."""

import base64
import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from efface.errors import BadInput
from efface.util.files import writing

INK, PAPER, RULE = (24, 24, 27), (255, 255, 255), (228, 228, 231)
MIN_SIDE = 128  # px that small images are enlarged to


class Layout(NamedTuple):
    """Hold sizes in pixels: image side as shown, gap between images, gap between cells, text height, margins."""

    width: int
    height: int
    gap: int
    gutter: int
    text: int
    pad: int


def to_image(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Convert one image in [0, 1] to 8-bit RGB."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy(), "RGB")


def sheet(
    cells: Sequence[Sequence[Float[Tensor, "n 3 h w"]]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    side: int = 0,
) -> Image.Image:
    """Draw a grid with labels; `cells` is a list of rows, each with the images of every column.

    side: width of an image in the grid, px; 0 enlarges small images by a whole number to at least 128.
    Raises BadInput unless there is one label for each row and column, and all images are of one size.
    """
    shape = _check(cells, rows, columns)
    layout = _layout(shape, side)
    counts = [max(row[j].shape[0] for row in cells) for j in range(len(columns))]
    across = [n * layout.width + (n - 1) * layout.gap for n in counts]
    font, small = _font(layout.text), _font(round(layout.text * 0.95))
    left = min(max(_width(font, text) for text in rows), 2 * layout.width + 40) + 2 * layout.pad
    heads = [_wrap(text, small, wide) for text, wide in zip(columns, across, strict=True)]
    labels = [_wrap(text, font, left - 2 * layout.pad) for text in rows]
    line = round(layout.text * 1.3)
    top = layout.pad + (2 * line if title else 0) + max(len(head) for head in heads) * line + layout.pad // 2
    tall = [max(layout.height, len(label) * line) for label in labels]
    width = left + sum(across) + layout.gutter * (len(columns) - 1) + layout.pad
    height = top + sum(tall) + layout.gutter * (len(rows) - 1) + layout.pad
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((layout.pad, layout.pad), title, INK, font=_font(round(layout.text * 1.25)))
    x = left
    for head, wide in zip(heads, across, strict=True):
        for i, text in enumerate(reversed(head)):  # column labels are aligned at the bottom, just above the images
            draw.text((x, top - layout.pad // 2 - (i + 1) * line), text, INK, font=small)
        x += wide + layout.gutter
    y = top
    for row, label, high in zip(cells, labels, tall, strict=True):
        _right(draw, label, left - layout.pad, y + (layout.height - len(label) * line) // 2, line, font)
        x = left
        for cell, wide in zip(row, across, strict=True):
            canvas.paste(strip(cell, layout), (x, y))
            x += wide + layout.gutter
        y += high + layout.gutter
    return canvas


def strip(images: Float[Tensor, "n 3 h w"], layout: Layout | None = None) -> Image.Image:
    """Place images side by side."""
    layout = layout or _layout(tuple(images.shape[-2:]), images.shape[-1])
    n = images.shape[0]
    out = Image.new("RGB", (n * layout.width + (n - 1) * layout.gap, layout.height), PAPER)
    for i, image in enumerate(images):
        shown = to_image(image)
        if shown.size != (layout.width, layout.height):
            whole = layout.width % shown.width == 0
            how = Image.Resampling.BICUBIC if whole else Image.Resampling.LANCZOS
            shown = shown.resize((layout.width, layout.height), how)
        out.paste(shown, (i * (layout.width + layout.gap), 0))
    return out


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises WriteError."""
    with writing(path) as temporary:
        image.save(temporary, "PNG", optimize=True)


def data_uri(image: Image.Image) -> str:
    """Encode an image as a PNG data URI, for self-contained pages."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _check(cells: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str]) -> tuple[int, ...]:
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells) or not rows or not columns:
        given = f"{len(cells)} × {[len(row) for row in cells]}"
        raise BadInput(f"a sheet of {len(rows)} × {len(columns)} labels needs as many cells, given {given}")
    shapes = {tuple(cell.shape[-2:]) for row in cells for cell in row}
    if len(shapes) != 1:
        raise BadInput(f"a sheet needs images of one size, given {sorted(shapes)}")
    return shapes.pop()


def _layout(shape: tuple[int, ...], side: int) -> Layout:
    height, width = shape
    shown = side or width * max(1, math.ceil(MIN_SIDE / width))
    high = round(height * shown / width)
    text = max(15, min(26, shown // 8))
    return Layout(shown, high, max(2, shown // 48), max(8, shown // 9), text, max(12, text))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # a scalable sans serif included in Pillow


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a label into lines that fit; a word that is too long is cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(font, f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_cut(line, font, width) for line in lines] or [""]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if _width(font, text) <= width:
        return text
    while text and _width(font, text + "…") > width:
        text = text[:-1]
    return text + "…"


def _right(
    draw: ImageDraw.ImageDraw,
    lines: list[str],
    right: int,
    y: int,
    line: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for i, text in enumerate(lines):
        draw.text((right - _width(font, text), y + i * line), text, INK, font=font)
