"""The judges of the digits: two independent classifiers for each data set, of which attacks ask one."""

import json
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.digits.classes import CLASSES
from efface.digits.net import Classifier
from efface.digits.pipeline import WEIGHTS
from efface.errors import BadModel, unknown
from efface.judge import Judge, Profile
from efface.util.files import load_safetensors, sha256_tensors

BATCH = 512
SIDE = 28  # px


class DigitJudge(Judge):
    """Classify images by the classes of a data set; without styles.

    accuracy: (right, all) on test images, if known.
    """

    MODELS: ClassVar[tuple[str, ...]] = tuple(f"digits:{dataset}" for dataset in CLASSES)
    NAMES: ClassVar[tuple[str, ...]] = ("judge", "judge2")
    ASKED: ClassVar[str] = "judge2"

    def __init__(self, net: nn.Module, classes: tuple[str, ...], name: str, accuracy: tuple[int, int] | None = None):
        self.net, self.classes, self.name, self.accuracy = net.eval().requires_grad_(False), classes, name, accuracy

    @classmethod
    def load(cls, model: str, name: str = "", folder: Path = WEIGHTS) -> "DigitJudge":
        """Load "judge" or "judge2" of "digits:mnist" or "digits:fashion".

        Raises `BadModel` when the folder has no weights of it, `UnknownName`.
        """
        if model not in cls.MODELS:
            raise unknown("model of digits", model, cls.MODELS)
        dataset, name = model.removeprefix("digits:"), name or cls.NAMES[0]
        path = folder / f"{dataset}.safetensors"
        if not path.is_file():
            raise BadModel(f"the judges of {model} have no weights in {folder}: train them first")
        tensors, meta = load_safetensors(path)
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        net = Classifier(len(CLASSES[dataset]))
        net.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in own.items()})
        accuracy = json.loads(meta.get("accuracy", "{}")).get(name)
        return cls(net, CLASSES[dataset], f"digits-{dataset}-{name}", tuple(accuracy) if accuracy else None)

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the probability of every class for images in [0, 1]."""
        return torch.cat([self.net(part[:, :1] * 2 - 1).float().softmax(-1) for part in images.split(BATCH)])

    @property
    def profile(self) -> Profile:
        """Return the profile that its scores are reported with."""
        return self._profile

    @cached_property
    def _profile(self) -> Profile:
        weights = {"judge": sha256_tensors(dict(self.net.state_dict()))[:16]}
        return Profile(evaluator=self.name, sha256=weights, input=SIDE, classes=len(self.classes))
