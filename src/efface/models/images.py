"""Image files for a model: read, resized, encoded and noised."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.errors import BadInput
from efface.models.model import Model
from efface.util import image_file
from efface.util.image_file import SUFFIXES

OTHERS = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm", ".eps", ".svg")  # images that are not read


def folder_latents(model: Model, folder: str | Path) -> Float[Tensor, "n ch h w"]:
    """Encode the images of a folder: centre-cropped squares at the model's size.

    Raises: BadInput for a missing folder, one without images, or an image that is unreadable or of another format.
    """
    others = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in OTHERS)
    if others:
        raise BadInput(f"{others[0]} is not read: convert it to PNG, JPEG or WebP, or take it out of the folder")
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadInput(f"no images in {folder} (looked for {', '.join(SUFFIXES)})")
    images = [square(path, model.family.image_size) for path in paths]
    with torch.no_grad():
        return model.encode_images(torch.stack(images))


def square(path: str | Path, size: int) -> Float[Tensor, "3 size size"]:
    """Read an image file as a centre-cropped square with values in [0, 1]; raises `BadInput` as `image_file.read`."""
    import numpy as np
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(image_file.read(path), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255


def noised(
    model: Model, clean: Float[Tensor, "b ch h w"], noise: Float[Tensor, "b ch h w"], t: Int[Tensor, " b"]
) -> Float[Tensor, "b ch h w"]:
    """Return x_t = alpha x_0 + sigma eps on the model's noise schedule."""
    return model.family.schedule.noised(clean, noise, t)
