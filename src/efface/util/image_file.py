"""Image files that others made: three formats, recognised by their content, and a limit of pixels."""

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 1 << 26  # 67 million: a square of 8192
DAMAGED = (  # what PIL raises for damaged files of these formats; a broken chunk is a SyntaxError
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error,
)  # fmt: skip


def read(path: str | Path, formats: tuple[str, ...] = FORMATS) -> "Image":
    """Return an image as RGB; of an animation, the first frame.

    The size is known from the header, before any pixel is decoded. PIL would try some fifty formats, of which some
    start other programs. Raises `BadInput` for another format, more than MAX_PIXELS pixels, or a damaged file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(path, f"it has {image.width} × {image.height} pixels")
                found = image.convert("RGB")
                found.info = dict(image.info)
                return found
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "its header says that it has more") from error
    except UnidentifiedImageError as error:
        known = " or ".join(formats)
        raise BadInput(f"cannot read the image {path}: its content is not {known}") from error
    except DAMAGED as error:
        raise BadInput(
            f"cannot read the image {path}: {' '.join(str(error).split())[:200] or 'it is damaged'}"
        ) from error


def _too_large(path: str | Path, what: str) -> BadInput:
    return BadInput(f"cannot read the image {path}: at most {MAX_PIXELS} pixels (8192 × 8192) are read, {what}")
