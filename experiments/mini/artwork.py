"""Emoji artwork under open licences: fetch the sets, rasterise the drawings of every object.

Ten npm packages of one JSON format, each with its licence inside. Share-alike sets are left out: their
condition would follow the weights.
"""

import json
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from efface.util.progress import progress
from experiments.mini.nouns import NOUNS

SIZE = 128  # pixels of a rasterised drawing


@dataclass(frozen=True)
class ArtSet:
    """One artist's set: npm package `@iconify-json/<name>`, at a fixed version."""

    name: str
    version: str
    licence: str
    author: str
    kind: str = "colour"  # "colour" sets are plain pictures; "ink" sets are a style of their own


SETS = (
    ArtSet("noto", "1.2.9", "Apache-2.0", "Google"),
    ArtSet("noto-v1", "1.2.5", "Apache-2.0", "Google"),
    ArtSet("twemoji", "1.2.5", "CC-BY-4.0", "Twitter and contributors"),
    ArtSet("fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation"),
    ArtSet("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation"),
    ArtSet("emojione", "1.2.3", "CC-BY-4.0", "Emoji One"),
    ArtSet("fxemoji", "1.2.2", "Apache-2.0", "Mozilla"),
    ArtSet("streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline"),
    ArtSet("fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation", "ink"),
    ArtSet("emojione-monotone", "1.2.1", "CC-BY-4.0", "Emoji One", "ink"),
)
HELD_OUT = ("noto-v1", "fxemoji", "streamline-emojis")  # artists that the judges never see in training


def fetch(folder: Path) -> None:
    """Download every set's package into `folder`, skipping what is there (needs `npm`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for art in progress(SETS, "fetching artwork"):
        if not package(folder, art).exists():
            subprocess.run(
                ["npm", "pack", "--silent", f"@iconify-json/{art.name}@{art.version}"], cwd=folder, check=True
            )


def package(folder: Path, art: ArtSet) -> Path:
    """Return the path of a set's npm package in `folder`."""
    return folder / f"iconify-json-{art.name}-{art.version}.tgz"


def icons(folder: Path, art: ArtSet) -> tuple[dict, dict]:
    """Read a set's (icons, info) JSON out of its npm package."""
    with tarfile.open(package(folder, art)) as tar:
        read = lambda name: json.load(tar.extractfile(f"package/{name}"))  # noqa: E731  # type: ignore[arg-type]
        return read("icons.json"), read("info.json")


def svg(data: dict, slug: str) -> str | None:
    """Return the SVG text of an icon, or None if the set has no such icon."""
    aliases = data.get("aliases", {})
    while slug in aliases:
        slug = aliases[slug]["parent"]
    icon = data["icons"].get(slug)
    if icon is None:
        return None
    width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    body = icon["body"].replace("currentColor", "#000")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{box}">{body}</svg>'


def rasterise(text: str) -> np.ndarray:
    """Draw an SVG on a transparent square, centred, its longer side filling nine tenths: (SIZE, SIZE, 4) uint8."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=text, width=2 * SIZE, height=2 * SIZE)
    image = Image.open(BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getchannel("A").point([0] * 9 + [255] * 247).getbbox())
    scale = 0.9 * SIZE / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas)


def drawings(folder: Path) -> dict[tuple[str, str, int], np.ndarray]:
    """Rasterise every drawing: (object, set, view) -> (SIZE, SIZE, 4) uint8, cached in `folder`/drawings.npz."""
    cache = folder / "drawings.npz"
    if not cache.exists():
        found = {}
        for art in progress(SETS, "rasterising"):
            data, _ = icons(folder, art)
            for noun in NOUNS:
                texts = [] if art.name in noun.without else [_find(data, view) for view in noun.views]
                for view, text in enumerate(dict.fromkeys(text for text in texts if text)):
                    found[f"{noun.name}|{art.name}|{view}"] = rasterise(text)
        with open(cache.with_suffix(".part"), "wb") as file:
            np.savez_compressed(file, **found)
        cache.with_suffix(".part").replace(cache)
    with np.load(cache) as stored:
        split = {key: key.split("|") for key in stored.files}
        return {(name, art, int(view)): stored[key] for key, (name, art, view) in split.items()}


def _find(data: dict, slug: str) -> str | None:
    """Return an icon by its name, which some sets write without hyphens."""
    return svg(data, slug) or svg(data, slug.replace("-", ""))
