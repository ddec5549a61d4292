"""ResNet-50: torchvision's classifier of ImageNet, which knows Imagenette's ten classes; for images of any model.

He et al. 2016, https://arxiv.org/abs/1512.03385. ESD, KPOP and others judge objects by it: ESR-k and PSR-k are shares
of images with the class outside and inside its first k of a thousand names. Its two sets of weights differ by some
points, which is why the profile has the hash. "resnet50" and "resnet50:v1" read torchvision's cache, "resnet50:FILE"
a file of yours; nothing is downloaded.
"""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadFile, BadInput
from efface.judge import Judge, Judged, Profile
from efface.util.weights import find_weights, load_weights, sha256_file, torchvision_cache

IMAGENETTE = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump",
    "golf ball", "parachute",
)  # fmt: skip
FILES = {"v2": "resnet50-11ad3fa6.pth", "v1": "resnet50-0676ba61.pth"}
SIDE = 224  # px
BATCH = 32


class ResNet50Judge(Judge):
    """Classify images by the thousand classes of ImageNet; names are matched whatever their case."""

    ANY_MODEL: ClassVar[bool] = True
    TAKES_FILE: ClassVar[bool] = True
    NAMES: ClassVar[tuple[str, ...]] = tuple(FILES)

    def __init__(self, path: Path, version: str = "v2"):
        """Load the weights of a file; version: v1 or v2, which see images cut in different ways. Raises `BadFile`."""
        whole = _torchvision()
        weights = getattr(whole.ResNet50_Weights, f"IMAGENET1K_{version.upper()}")
        self.classes, self.version, self._path = tuple(weights.meta["categories"]), version, path
        self._prepare, self._net = weights.transforms(antialias=True), _network(path, sha256_file(path))

    @classmethod
    def load(cls, model: str, name: str = "") -> "ResNet50Judge":
        """Load "v2" or "v1" from torchvision's cache, or a file by its path. Raises `BadFile` when it is not there."""
        version = name or cls.NAMES[0]
        path = find_weights("" if version in FILES else version, FILES.get(version, ""))
        if path is None and version not in FILES:
            raise BadFile(f"no file {version} for the judge resnet50")
        if path is None:
            raise BadFile(
                f"the judge resnet50 has no weights: {FILES[version]} is not in {torchvision_cache()}; nothing is "
                f"downloaded. Put it there, or give your file as resnet50:FILE"
            )
        return cls(path, version if version in FILES else "v1" if path.name == FILES["v1"] else "v2")

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the probability of every class for images in [0, 1]."""
        return torch.cat([self._net(self._prepare(part)).float().softmax(-1) for part in images.split(BATCH)])

    def index(self, name: str, kind: Judged = "object") -> int:
        """Return the column of a name in any case; raises `UnknownName`."""
        same = [i for i, known in enumerate(self.classes) if known.lower() == name.lower()]
        return same[0] if same and kind == "object" else super().index(name, kind)

    @property
    def profile(self) -> Profile:
        """Return the profile that its scores are reported with."""
        return Profile(
            evaluator=f"torchvision ResNet-50, prepared as {self.version}",
            sha256={"net": sha256_file(self._path)[:16]}, input=SIDE, classes=len(self.classes),
        )  # fmt: skip


def _torchvision() -> Any:
    try:
        import torchvision.models
    except ImportError as error:
        raise BadInput(f"torchvision is not installed: pip install 'efface[eval]' ({error})") from error
    return torchvision.models


@cache
def _network(path: Path, _sha256: str) -> torch.nn.Module:
    tensors = load_weights(path)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        net = _torchvision().resnet50(weights=None)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadFile(f"{path} has no weights of a ResNet-50: {' '.join(str(error).split())[:200]}") from error
    return net.eval().requires_grad_(False)
