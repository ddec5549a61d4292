"""LPIPS: perceptual distance to the original model's image of the same prompt and seed.

Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features, https://arxiv.org/abs/1801.03924, version 0.1. Its
mean over the erased artist's prompts is LPIPS_e, over the other artists' LPIPS_u, and LPIPS_d is their difference (Gong
et al. 2024, https://arxiv.org/abs/2407.12383, table 3): `efface.evaluation.lpips`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from efface.errors import BadFile
from efface.metric import Better, Metric, Need, Samples
from efface.util.ranges import Ranges
from efface.util.weights import find_weights, load_weights, sha256_file, torchvision_cache

FILE = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
BATCH = 32


@dataclass(frozen=True)
class LPIPS(Metric):
    """Return the perceptual distance of each image to the original model's, 0 for the same image.

    Args:
        net: backbone, alex or vgg
        size: width that images are brought to, px; distances at different widths are not comparable
        weights: file of the backbone, .safetensors or torchvision's .pth; empty = the one in torchvision's cache
    """

    net: Literal["alex", "vgg"] = "alex"
    size: int = 64  # of ESD's, UCE's and RECE's tables
    weights: str = ""

    RANGES: ClassVar[Ranges] = {"size": "[32, 4096]"}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"rece": {"size": 64}, "kpop": {"size": 512}}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "original")
    RANGE: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    BETTER: ClassVar[Better] = "low"  # of what should stay; high of what should go
    PACKAGE: ClassVar[str] = "torchmetrics"
    FILES: ClassVar[tuple[str, ...]] = ("weights",)

    @property
    def label(self) -> str:
        """Return "lpips alex 64 px": the size is always said."""
        return f"lpips {self.net} {self.size} px"

    @property
    def file(self) -> Path:
        """Return the backbone's file. Raises `BadFile` when there is none."""
        found = find_weights(self.weights, FILE[self.net])
        if found is None:
            raise BadFile(
                f"no file {self.weights}" if self.weights else f"no {FILE[self.net]} in {torchvision_cache()}"
            )
        return found

    def instrument(self, judge: Any = None) -> dict[str, Any]:
        """Return the settings and the backbone's sha256."""
        from torchmetrics import __version__

        digest = sha256_file(self.file)[:16]
        return {"metric": "lpips", "net": self.net, "size": self.size, "weights": digest, "torchmetrics": __version__}

    def missing(self, samples: Samples) -> list[str]:
        """Return what is missing; a backbone without weights counts as missing."""
        lacking = super().missing(samples)
        if find_weights(self.weights, FILE[self.net]) is None:
            where = f"{self.weights} does not exist" if self.weights else f"not in {torchvision_cache()}"
            lacking.append(f"the weights of its backbone {FILE[self.net]} ({where}; nothing is downloaded)")
        return lacking

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one distance per image. Raises `BadFile` for weights of another network."""
        assert samples.images is not None
        assert samples.original is not None
        net = _network(self.net, self.file, sha256_file(self.file))
        pairs = zip(samples.images.split(BATCH), samples.original.split(BATCH), strict=True)
        return torch.cat([net(self._sized(a), self._sized(b), normalize=True).reshape(-1) for a, b in pairs])

    def _sized(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        if images.shape[-2:] == (self.size, self.size):
            return images
        return interpolate(images, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)


@cache
def _network(net: Literal["alex", "vgg"], path: Path, _sha256: str) -> nn.Module:
    """Return torchmetrics' network, whose heads ship with it, with the user's backbone in it."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # its public form would download the backbone

    given = load_weights(path)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        whole = _NoTrainLpips(net=net, pnet_rand=True)
        for name, weight in whole.net.named_parameters():  # "slice2.3.weight" is "features.3.weight"
            own = given.get(f"features.{name.partition('.')[2]}")
            if own is None or own.shape != weight.shape:
                raise BadFile(f"{path} has no weights of the backbone {net}: features.{name.partition('.')[2]}")
            weight.data = own.float()
    return whole
