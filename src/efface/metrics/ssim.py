"""SSIM: structural similarity to the original model's image of the same prompt and seed.

Wang et al. 2004, Image quality assessment: from error visibility to structural similarity,
https://doi.org/10.1109/TIP.2003.819861. As torchmetrics computes it: windows at the borders see the image mirrored,
where scikit-image leaves them out.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput
from efface.metric import Metric, Need, Samples
from efface.util.ranges import Ranges


@dataclass(frozen=True)
class SSIM(Metric):
    """Return the similarity of each image to the original model's, 1 for the same image.

    Args:
        window: side of a window that counts all its pixels alike, odd, px; 0 for the standard Gaussian one of 11 px
    """

    window: int = 0

    RANGES: ClassVar[Ranges] = {"window": "[0, 255]"}
    # "Considering the image size, we use a window size of 25x25" (Hong et al. 2024, All but One): of 512 px
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"all-but-one": {"window": 25}}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "original")
    RANGE: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    PACKAGE: ClassVar[str] = "torchmetrics"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window and self.window % 2 == 0:
            raise BadInput(f"window must be odd, so that it has a middle, got {self.window}")

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one similarity per image. Raises `BadInput` for images smaller than the window."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        assert samples.images is not None
        assert samples.original is not None
        if self.window > min(samples.images.shape[-2:]):
            raise BadInput(f"window {self.window} is larger than the images, which have {samples.images.shape[-1]} px")
        kernel: dict[str, Any] = {"gaussian_kernel": False, "kernel_size": self.window} if self.window else {}
        each = ssim(samples.images, samples.original, data_range=1.0, reduction="none", **kernel)
        assert isinstance(each, Tensor)
        return each.reshape(-1)
