"""Captions of a folder of pictures: beside each picture, a text file of the same name."""

from pathlib import Path

from efface.errors import BadInput
from efface.util.image_file import SUFFIXES

LONGEST = 10_000  # bytes; a prompt is cut off far before


def captions_of(folder: str | Path) -> tuple[str, ...]:
    """Return one caption for each picture, in the order in which `folder_latents` reads them.

    Raises `BadInput` for a folder without pictures, and a picture whose caption is missing, empty or no text.
    """
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadInput(f"no images in {folder} (looked for {', '.join(SUFFIXES)})")
    return tuple(_caption(path.with_suffix(".txt"), path) for path in paths)


def _caption(path: Path, picture: Path) -> str:
    try:
        with path.open("rb") as file:
            text = " ".join(file.read(LONGEST + 1).decode("utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{picture} needs a caption: a text in {path.name} beside it") from error
    if not text or len(text) > LONGEST:
        raise BadInput(f"the caption {path} is {'too long' if text else 'empty'}: one line of text is read")
    return text


__all__ = ["captions_of"]
