"""Contact sheets of mini: pictures to look at before any number is believed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efface.evaluation.prompts import implicit_prompts
from efface.models.model import Model
from efface.query import Query
from experiments.mini.captions import SAID_GROUND, named
from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.properties import PLAIN
from experiments.mini.scenes import STYLE_NAMES


def contact_sheet(model: Model, path: Path, cells: Callable[[int], Sequence[Query]], rows: Sequence[int]) -> None:
    """Draw one row of images per object and save the sheet, with names."""
    from PIL import Image, ImageDraw

    asked = [cells(row) for row in rows]
    images = model.generate([query for row in asked for query in row])
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    width = len(asked[0])
    sheet = Image.new("RGB", (92 + 66 * width, 66 * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        draw.text((4, 66 * r + 26), NAMES[row], fill="black")
        for c in range(width):
            sheet.paste(Image.fromarray(pixels[r * width + c]), (92 + 66 * c, 66 * r))
    sheet.save(path)


def sheets(model: Model, folder: Path, **how: Any) -> None:
    """Write contact sheets: plain seeds, styles, keywords and scenes, half of the objects on each."""
    said = [words[0] for words in SAID_GROUND.values()]
    kinds: dict[str, Callable[[int], Sequence[Query]]] = {
        "plain": lambda o: [Query(PLAIN[o], s, **how) for s in range(12)],
        "styles": lambda o: [
            Query(f"{PLAIN[o]} in the style of {s}", k, **how) for s in STYLE_NAMES[1:] for k in range(2)
        ],
        "keywords": lambda o: [Query(p, s, **how) for p in implicit_prompts(NOUNS[o].keywords)[:4] for s in range(3)],
        "scenes": lambda o: [
            *(Query(f"{PLAIN[o]} {ground}", k, **how) for k, ground in enumerate(said)),
            Query(f"{named(o)} and {named((o + 7) % len(NAMES))}", 0, **how),
            Query(f"{named(o)} left of {named((o + 3) % len(NAMES))}", 1, **how),
        ],
    }
    half = (len(NAMES) + 1) // 2
    for name, cells in kinds.items():
        for part, rows in (("a", range(half)), ("b", range(half, len(NAMES)))):
            contact_sheet(model, folder / f"{name}-{part}.png", cells, rows)
