"""Random resizing of training images with words that tell of it, as Concept Ablation's code does it for objects."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from efface.models.model import Model

WORDS = ("", "a far away ", "very small ", "zoomed in ", "close up ")  # in front of a prompt
GREY = 0.5  # around a smaller image


class Resized(NamedTuple):
    """Hold latents of resized images, where the images are in them (1, else 0), and which of WORDS tells of it."""

    latents: Float[Tensor, "b ch h w"]
    mask: Float[Tensor, "b 1 h w"]
    words: Int[Tensor, " b"]


@torch.no_grad()
def resized(model: Model, clean: Float[Tensor, "b ch h w"], rng: torch.Generator) -> Resized:
    """Decode latents, make each image smaller or larger at random, and encode them again.

    Two of three images get a side drawn from 1/3 to 1 of the size, one of three from 1.2 to 1.4. Sides from 0.6 to 1
    leave the image as it is. A smaller image lies somewhere on grey, of a larger one a random part is kept.
    """
    images = model.decode(clean)
    made = [_resized(image, images.shape[-1] // clean.shape[-1], rng) for image in images]
    latents = model.encode_images(torch.stack([image for image, _, _ in made]))
    words = torch.tensor([word for _, _, word in made], device=clean.device)
    return Resized(latents, torch.stack([mask for _, mask, _ in made]), words)


def masked_error(error: Float[Tensor, "b ch h w"], mask: Float[Tensor, "b 1 h w"] | None = None) -> Float[Tensor, ""]:
    """Return the mean of squared errors, of each image where its mask is 1."""
    if mask is None:
        return error.square().mean()
    inside = mask.expand_as(error)
    return ((error.square() * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)).mean()


def _resized(image: Tensor, factor: int, rng: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Return an image (3, size, size), its mask (1, size / factor, …) and the number of its words."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=rng))

    size = image.shape[-1]
    mask = torch.ones(1, size // factor, size // factor, device=image.device)
    side = draw(size // 3, size + 1) if draw(0, 3) < 2 else draw(int(1.2 * size), int(1.4 * size))
    if 0.6 * size <= side <= size:
        return image, mask, 0
    other = interpolate(image[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (draw(0, abs(side - size) + 1) for _ in range(2))
    if side > size:
        return other[:, top : top + size, left : left + size], mask, draw(3, 5)
    canvas, mask = torch.full_like(image, GREY), torch.zeros_like(mask)
    canvas[:, top : top + side, left : left + side] = other
    rows, columns = (slice(at // factor + 1, (at + side) // factor - 1) for at in (top, left))
    mask[:, rows, columns] = 1  # without the edge, whose latents also see the grey
    return canvas, mask, draw(1, 3)
