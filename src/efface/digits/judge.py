"""The judge of the digits: a classifier whose probabilities may be differentiated."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.util.files import sha256_tensors

BATCH = 512


class DigitJudge:
    """Return which class an image shows; the interface of every judge, and its gradient where one is asked for.

    classes: names in the order of the probabilities.
    styles: none.
    accuracy: (right, all) on pictures that it was not trained on, if known.
    """

    styles: tuple[str, ...] = ()

    def __init__(self, net: nn.Module, classes: tuple[str, ...], name: str, accuracy: list[int] | None = None):
        self.net, self.classes, self.name, self.accuracy = net.eval().requires_grad_(False), classes, name, accuracy

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the probability of every class for pictures in [0, 1]."""
        return torch.cat([self.net(part[:, :1] * 2 - 1).float().softmax(-1) for part in images.split(BATCH)])

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 0"]:
        """Return nothing: there are no styles."""
        return images.new_zeros(len(images), 0)

    @cached_property
    def profile(self) -> dict[str, Any]:
        """Return what a score must be quoted with."""
        return {
            "evaluator": self.name, "version": 1, "sha256": sha256_tensors(dict(self.net.state_dict()))[:16],
            "input": 28, "classes": len(self.classes), "statistic": "largest probability",
            "held_out_accuracy": self.accuracy,
        }  # fmt: skip
