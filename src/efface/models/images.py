"""Image files for a model: read, resized, encoded and noised."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.errors import BadInput
from efface.models.model import Model

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def folder_latents(model: Model, folder: str | Path) -> Float[Tensor, "n ch h w"]:
    """Encode the images of a folder: centre-cropped squares at the model's size.

    Raises: BadInput for a missing folder, one without images, or an unreadable image.
    """
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadInput(f"no images in {folder} (looked for {', '.join(SUFFIXES)})")
    images = [square(path, model.family.image_size) for path in paths]
    with torch.no_grad():
        return model.encode_images(torch.stack(images))


def square(path: str | Path, size: int) -> Float[Tensor, "3 size size"]:
    """Read an image file as a centre-cropped square with values in [0, 1]; raises `BadInput`."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError) as error:  # PIL reports a broken chunk as SyntaxError
        raise BadInput(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255


def noised(
    model: Model, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"], t: Int[Tensor, " b"]
) -> Float[Tensor, "b ch h w"]:
    """Return x_t = alpha x_0 + sigma eps on the model's noise schedule."""
    return model.family.schedule.noised(clean, noise, t)
