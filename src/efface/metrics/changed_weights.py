"""Changed weights: the share of the denoiser's weights that an edit changes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.metric import Better, Metric, Need, Samples


@dataclass(frozen=True)
class ChangedWeights(Metric):
    """Return the share of the denoiser's weights that the edit changes; 0 for guards."""

    NEEDS: ClassVar[tuple[Need, ...]] = ("model", "edit")
    BETTER: ClassVar[Better] = "low"
    PER_IMAGE: ClassVar[bool] = False

    def measure(self, samples: Samples) -> Float[Tensor, ""]:
        """Return one number for the edit."""
        assert samples.model is not None
        assert samples.edit is not None
        weights = samples.model.weights()
        deltas = samples.edit.dense(samples.model) if samples.edit.names else {}
        changed = sum(int((delta != 0).sum()) for name, delta in deltas.items() if name in weights)
        return torch.tensor(changed / sum(parameter.numel() for parameter in weights.values()))
