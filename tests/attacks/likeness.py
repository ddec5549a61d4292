"""A judge for tests: an image shows the church as far as it is like one of the given images."""

import torch

from efface.judge import Judge, Profile


class Likeness(Judge):
    """Give exp(-sharp × mean squared error) to "church" by the nearest of some images; differentiable."""

    classes, profile = ("church", "house"), Profile(evaluator="likeness")

    def __init__(self, images: torch.Tensor, sharp: float = 1000.0):
        self.images, self.sharp, self.seen = images, sharp, 0

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        """Return (likeness, the rest)."""
        self.seen += len(images)
        errors = (images[:, None] - self.images[None]).square().mean((2, 3, 4))
        like = torch.exp(-self.sharp * errors.amin(1))
        return torch.stack([like, 1 - like], 1)
