"""CLIP score: similarity of an image and its prompt, by the judge's own CLIP.

Hessel et al. 2021, CLIPScore, https://arxiv.org/abs/2104.08718; the plain cosine, without their factor 2.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from efface.metric import Better, Metric, Need, Samples


@dataclass(frozen=True)
class ClipScore(Metric):
    """Return the cosine of each image with its prompt."""

    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "texts", "judge")
    RANGE: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    BETTER: ClassVar[Better] = "as its group"

    def missing(self, samples: Samples) -> list[str]:
        """Return what is missing; a judge without a CLIP counts as missing."""
        blind = samples.judge is not None and not samples.judge.reads_text
        return super().missing(samples) + (["a judge with a CLIP"] if blind else [])

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one cosine per image."""
        assert samples.judge is not None
        assert samples.images is not None
        return samples.judge.clip_score(samples.images, list(samples.texts)).cpu()
