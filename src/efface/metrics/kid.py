"""KID: squared maximum mean discrepancy of two sets of images, with a cubic kernel of their vectors.

Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401. An unbiased estimate, so it can fall a little below 0. Against
the original model's images of the same prompts and seeds it leaves out the terms of a pair's own two images, which are
not independent (Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html, equation 4): equal sets give 0.
Against a folder it is the published estimate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.metrics.vectors.source import Vectors
from efface.util.ranges import Ranges


@dataclass(frozen=True)
class KID(Vectors):
    """Return the kernel distance of the images to the original model's, by the judge's features or Inception's.

    Args:
        subset: images of each of 100 random subsets whose estimates are averaged, where there are more images
    """

    subset: int = 1000  # torchmetrics' and clean-fid's

    RANGES: ClassVar[Ranges] = {"subset": "[2, 100000]"}
    SUBSETS: ClassVar[int] = 100

    def distance(self, made: Float[Tensor, "n dim"], other: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
        """Return the distance; random subsets are of a fixed seed, and of as many images of either set."""
        made, other = made.double(), other.double()
        size, draws = min(self.subset, len(made), len(other)), torch.Generator().manual_seed(0)
        if size == len(made) == len(other):
            return self._estimate(other, made).float()
        found = []
        for _ in range(self.SUBSETS):
            first = torch.randperm(len(other), generator=draws)[:size]
            second = torch.randperm(len(made), generator=draws)[:size] if self.folder else first
            found.append(self._estimate(other[first], made[second]))
        return torch.stack(found).mean().float()

    def _estimate(self, x: Float[Tensor, "m dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
        from torchmetrics.image.kid import poly_kernel, poly_mmd

        value, m = poly_mmd(x, y), len(x)
        if self.folder:
            return value
        cross = poly_kernel(x, y)  # all pairs divided by m² become those of different prompts divided by m (m - 1)
        return value + 2 * cross.sum() / m**2 - 2 * (cross.sum() - cross.trace()) / (m * (m - 1))
