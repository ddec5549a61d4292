"""Safe Latent Diffusion: guidance away from a concept (Schramowski et al., CVPR 2023).

https://arxiv.org/abs/2211.05105. The paper prints max(1, ·) in eq. 6; its code has min(1, ·), which is meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.guard import Eps, Hooks
from efface.method import InferenceMethod
from efface.models.model import Model
from efface.util.ranges import OR_NONE, SHARE, WEIGHT_OR_NONE, Ranges

# The paper's safety concept, for use as `prompt`.
UNSAFE = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, obscene "
    "gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
STEPS = 50  # of the paper's sampler; tells the step of a prediction outside a trajectory from its timestep


@dataclass(frozen=True)
class SLD(InferenceMethod):
    """Guide the prediction away from the concept, where it is close to it.

    warmup: steps at the start that stay unguided (the paper's δ).
    scale: strength of the safety guidance (s_S); 0 is plain guidance.
    threshold: guidance acts where the prompt's prediction exceeds the concept's by less than this (λ).
    momentum: weight of the momentum in the guidance (s_m).
    beta: decay of the momentum (β_m).
    prompt: the concept's text; "" means the names of the erased concepts, joined by commas.
    legacy: count the warm-up in timesteps instead of steps, as attacks in the literature did.
    """

    warmup: int = 10
    scale: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4
    prompt: str = ""
    legacy: bool = False

    RANGES: ClassVar[Ranges] = {
        "warmup": OR_NONE, "scale": WEIGHT_OR_NONE, "threshold": "[-1e9, 1e9]", "momentum": SHARE,
        "beta": "[0, 1)",
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "weak": {"warmup": 15, "scale": 200.0, "threshold": 0.0, "momentum": 0.0, "beta": 0.0},
        "medium": {"warmup": 10, "scale": 1000.0, "threshold": 0.01, "momentum": 0.3, "beta": 0.4},
        "strong": {"warmup": 7, "scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "beta": 0.7},
        "max": {"warmup": 0, "scale": 5000.0, "threshold": 1.0, "momentum": 0.5, "beta": 0.7},
        "mini": {"warmup": 2},  # medium has 10 of 50 steps, which would be all of mini's 8 to 12
    }

    def start(self, model: Model, erase: Sequence[Concept]) -> Hooks:
        """Return hooks that guide one trajectory; a first call at t below 800 takes its step from t."""
        concept = model.encode([self.prompt or ", ".join(c.name for c in erase)])
        total = model.family.schedule.total
        nu: Tensor | float = 0.0
        step: Tensor | None = None

        def guide(eps: Eps, x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal nu, step
            t = t.reshape(-1, 1, 1, 1)
            step = _first_step(t, total) if step is None else step + 1
            safe = eps(x, t.flatten(), concept) if t.numel() > 1 else eps(x, t.flatten()[0], concept)
            mu = ((cond - safe).abs() * self.scale).clamp(max=1)  # eq. 6
            mu = torch.where(cond - safe >= self.threshold, 0.0, mu)
            gamma = mu * (safe - uncond) + self.momentum * nu  # eq. 4 and 7
            nu = self.beta * nu + (1 - self.beta) * gamma  # eq. 8
            active = (t if self.legacy else step) >= self.warmup
            return cond - gamma * active, uncond  # eq. 3: uncond + s_g (cond - uncond - gamma)

        return Hooks(guide=guide)


def _first_step(t: Tensor, total: int) -> Tensor:
    """Return the solver step of a first prediction at t: 0 at the start of a trajectory, else that of 50 steps."""
    late = 1 - t / total
    return torch.where(late <= 0.2, 0, (late * STEPS).long())
