"""Where the vectors of FID and KID come from: the judge's own CLIP, or Inception with the user's weights."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface import registry
from efface.errors import BadFile, BadInput
from efface.judge import Judge
from efface.metric import Samples, SetMetric, installed
from efface.models.images import square
from efface.util.image_file import SUFFIXES
from efface.util.weights import sha256_file

BATCH = 64
SIDE = 299  # px, of Inception's input


@dataclass(frozen=True)
class Vectors(SetMetric):
    """Compare sets of images by vectors of them.

    Args:
        features: judge, the image vectors of the judge's CLIP; or inception, the pool3 layer of the network that FID is
            defined with. Numbers by one say nothing about numbers by the other
        weights: file of Inception's weights, as torch-fidelity names it (weights-inception-2015-12-05-6726825d.pth)
        folder: images to compare with, such as COCO's; empty = the original model's images of the same prompts
    """

    features: Literal["judge", "inception"] = "judge"
    weights: str = ""
    folder: str = ""

    PACKAGE: ClassVar[str] = "torchmetrics"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"inception": {"features": "inception"}}
    FILES: ClassVar[tuple[str, ...]] = ("weights", "folder")

    @property
    def label(self) -> str:
        """Return "fid:judge" or "fid:inception": whose features they are is always said; and what they meet."""
        return f"{registry.name_of(type(self))}:{self.features}" + " to a folder" * bool(self.folder)

    def instrument(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return the settings with whose features they are: the judge's profile, or the sha256 of Inception's file."""
        known = super().instrument(None if self.features == "inception" else judge)
        return known | {"against": "folder" if self.folder else "original"}

    def missing(self, samples: Samples) -> list[str]:
        """Return what is missing; a judge without a CLIP, or Inception's file, counts as missing."""
        lacking = super().missing(samples)
        if self.features == "judge" and samples.judge is not None and not samples.judge.reads_text:
            lacking.append("a judge with a CLIP, for its image vectors")
        if self.features == "inception" and not Path(self.weights).is_file():
            lacking.append(f"the file of Inception's weights ({self.weights or 'none given'}; nothing is downloaded)")
        if self.features == "inception" and not installed("torch_fidelity"):
            lacking.append("the package torch-fidelity, which is not installed: pip install torch-fidelity")
        return lacking

    def vectors(self, images: Float[Tensor, "n 3 h w"], judge: Judge | None) -> Float[Tensor, "n dim"]:
        """Return one vector per image, fp32."""
        if self.features == "judge":
            assert judge is not None
            return judge.image_features(images.to(judge.device)).float().cpu()
        net = inception(Path(self.weights), sha256_file(Path(self.weights)))
        whole = (images * 255).round().to(torch.uint8)
        return torch.cat([net(part)[0].float() for part in whole.split(BATCH)])

    def others(self, original: Float[Tensor, "n dim"], judge: Judge | None) -> Float[Tensor, "m dim"]:
        """Return the vectors of the folder's images, or of the original model's. Raises `BadInput`, `BadFile`."""
        if not self.folder:
            return original
        side = judge.profile.input if judge is not None and self.features == "judge" else SIDE
        paths = sorted(path for path in Path(self.folder).glob("*") if path.suffix.lower() in SUFFIXES)
        found = [self.vectors(square(path, side)[None], judge) for path in paths]
        if len(found) < 2:
            raise BadInput(f"{self.folder} has {len(found)} images: a set has two or more")
        return torch.cat(found)


@cache
def inception(path: Path, _sha256: str) -> nn.Module:
    """Return torch-fidelity's Inception with the user's weights; bytes in, (n, 2048) out. Raises `BadFile`."""
    network = import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    try:
        return network("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)).eval()
    except Exception as error:  # of pickle and of shapes
        raise BadFile(f"{path} is not a file of Inception's weights: {' '.join(str(error).split())[:200]}") from error
