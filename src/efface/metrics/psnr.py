"""PSNR: peak signal-to-noise ratio to the original model's image of the same prompt and seed."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from efface.metric import Metric, Need, Samples

MOST = 120.0  # dB, of equal images: infinity has no mean


@dataclass(frozen=True)
class PSNR(Metric):
    """Return the ratio of each image to the original model's in dB, at most 120, which equal images have."""

    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "original")
    RANGE: ClassVar[tuple[float, float]] = (0.0, MOST)
    PACKAGE: ClassVar[str] = "torchmetrics"
    USUAL: ClassVar[bool] = False  # SSIM says as much

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one ratio per image."""
        from torchmetrics.functional.image import peak_signal_noise_ratio as psnr

        assert samples.images is not None
        assert samples.original is not None
        each = psnr(samples.images, samples.original, data_range=1.0, reduction="none", dim=(1, 2, 3))
        return each.reshape(-1).clamp(max=MOST)
