"""SSIM: structural similarity to the original model's image of the same prompt and seed.

Wang et al. 2004, Image quality assessment: from error visibility to structural similarity,
https://doi.org/10.1109/TIP.2003.819861.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from efface.metric import Metric, Need, Samples


@dataclass(frozen=True)
class SSIM(Metric):
    """Return the similarity of each image to the original model's, 1 for the same image (Gaussian window of 11)."""

    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "original")
    RANGE: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    PACKAGE: ClassVar[str] = "torchmetrics"

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one similarity per image."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        assert samples.images is not None
        assert samples.original is not None
        each = ssim(samples.images, samples.original, data_range=1.0, reduction="none")
        assert isinstance(each, Tensor)
        return each.reshape(-1)
