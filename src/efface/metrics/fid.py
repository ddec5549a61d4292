"""FID: Fréchet distance of two sets of images, as Gaussians of their vectors.

Heusel et al. 2017, https://arxiv.org/abs/1706.08500. It is biased upwards, more so for fewer images: compare only
numbers of as many. RECE compares with the original model's images (1.8 to 17), KPOP and All but One with COCO's
(13 to 20).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.metrics.vectors.source import Vectors


@dataclass(frozen=True)
class FID(Vectors):
    """Return the Fréchet distance of the images to the original model's, by the judge's features or Inception's."""

    def distance(self, made: Float[Tensor, "n dim"], other: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
        """Return the distance, 0 or more."""
        from torchmetrics.image.fid import FrechetInceptionDistance

        plain: Any = torch.nn.Identity()  # torchmetrics takes a network: what it is given are vectors already
        plain.num_features = made.shape[1]
        metric = FrechetInceptionDistance(feature=plain)  # double precision inside
        metric.update(other, real=True)
        metric.update(made, real=False)
        return metric.compute().float().clamp(min=0)
