"""Presence: whether an image's label is among the judge's k most probable names.

Its share over images of the erased concept is 1 - ESR-k (erasing success rate), over images of other concepts PSR-k
(preserving success rate): Bui et al. 2024, section 5.2, https://arxiv.org/abs/2403.12326.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.metric import Better, Metric, Need, Samples
from efface.util.ranges import Ranges


@dataclass(frozen=True)
class Presence(Metric):
    """Return for each image whether its label is among the judge's k most probable names: 1 or 0.

    k: number of the judge's most probable names that count, 1 or more
    """

    k: int = 1

    RANGES: ClassVar[Ranges] = {"k": "[1, 1000]"}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "labels", "judge")
    BETTER: ClassVar[Better] = "as its group"

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return 1 or 0 per image. Raises `UnknownName` for a label that the judge does not know."""
        assert samples.judge is not None
        found = torch.zeros(len(samples.labels))
        for kind in ("object", "style"):
            at = [i for i in range(len(found)) if samples.kind_of(i) == kind]
            if at:
                labels = torch.tensor([samples.judge.index(samples.labels[i], kind) for i in at])
                probabilities = samples.probabilities(kind)[at]
                first = probabilities.topk(min(self.k, probabilities.shape[1]), dim=1).indices  # (n, k)
                found[at] = (first == labels[:, None]).any(dim=1).float()
        return found
