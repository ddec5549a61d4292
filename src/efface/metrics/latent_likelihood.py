"""Latent likelihood: how likely the noise is from which the edited model would generate the images.

Rusanovsky et al. 2025, Memories of Forgotten Concepts, https://arxiv.org/abs/2412.00782: a picture of an erased concept
whose noise is as likely as any other's is still within the model. The attack `latent_inversion` finds such noise and
says how well it gives the picture back.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.metric import Better, Metric, Need, Samples
from efface.models.inversion import ddim_steps, invert
from efface.models.likelihood import log_likelihood
from efface.query import Query
from efface.util.ranges import Ranges

BATCH = 16


@dataclass(frozen=True)
class LatentLikelihood(Metric):
    """Return log N(z; 0, I) of the noise that DDIM inversion finds for each image, nats a dimension; true noise: -1.42.

    Args:
        steps: of DDIM
        rounds: fixed-point iterations of each step
    """

    steps: int = 20
    rounds: int = 5

    RANGES: ClassVar[Ranges] = {"steps": "[1, 1000]", "rounds": "[0, 1000]"}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "texts", "model", "edit")
    RANGE: ClassVar[tuple[float, float]] = (float("-inf"), -0.918)  # -log(2π) / 2, of noise that is 0 everywhere
    BETTER: ClassVar[Better] = "as its group"
    USUAL: ClassVar[bool] = False

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one number per image."""
        assert samples.images is not None
        assert samples.model is not None
        assert samples.edit is not None
        with samples.edit.applied(samples.model) as model:
            steps, found = ddim_steps(model, self.steps), []
            for first in range(0, len(samples.images), BATCH):
                part = slice(first, first + BATCH)
                clean = model.encode_images(samples.images[part].to(model.device))
                queries = [Query(text, guidance=1.0) for text in samples.texts[part]]
                cond = model.hooks().embed(model.contexts(queries)[0])

                def noise(x: Tensor, t: float | int, cond=cond) -> Tensor:
                    return model.eps(x, torch.tensor(t, device=x.device), cond)

                found.append(log_likelihood(invert(model.family.schedule, clean, steps, noise, self.rounds)).cpu())
        return torch.cat(found)
