"""SDD: pull the noise under the concept to the model's own noise under no prompt, and release the moving average.

Kim et al. 2023, https://arxiv.org/abs/2307.05977.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Loss, Run, prompts_of
from efface.models.trajectory import partly_denoise


@dataclass(frozen=True)
class SDD(FineTune):
    """Erase concepts by self-distillation from the unconditional prediction; `preserve` is not used.

    Args:
        decay: of the moving average of the student, which draws z_t and is what the edit holds
        joined: where all concepts stand in one prompt: draw (z_t, as its code does) or loss (as its pseudo-code says)
        guidance: guidance scale while drawing z_t
        ddim_steps: steps of a whole trajectory
        reuse: noisy latents taken from one trajectory; must divide batch
        prompts: what of a concept is erased: its bare name (name), or its name and its prompts (all)
    """

    steps: int = 1500
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    clip: float = 1.0
    decay: float = 0.999  # of the exponential moving average in its code
    joined: Literal["draw", "loss"] = "draw"
    guidance: float = 3.0
    ddim_steps: int = 50
    reuse: int = 1
    prompts: Literal["name", "all"] = "name"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "repo": {},
        "paper": {"joined": "loss"},
        "mini": {"steps": 130, "lr": 4e-4, "batch": 4, "decay": 0.95, "ddim_steps": 8},
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "ddim_steps": 3, "decay": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay <= 1:
            raise BadInput(f"decay must be between 0 and 1, got {self.decay}")

    def objective(self, run: Run) -> Loss:
        """Return ‖ε_θ(z_t, c) − sg ε_θ(z_t, ∅)‖², both from the student, z_t drawn by its moving average."""
        run.track_average(self.decay)
        single = run.contexts([text for concept in run.erase for text in prompts_of(concept, self.prompts)])
        joined = run.contexts([", ".join(concept.name for concept in run.erase)])
        drawn, taught = (joined, single) if self.joined == "draw" else (single, joined)

        def loss(step: int) -> Float[Tensor, ""]:
            z, t, _ = partly_denoise(
                run.average, drawn, run.null, run.rng, self.batch, self.guidance, self.ddim_steps, reuse=self.reuse
            )
            turn = torch.arange(step * self.batch, (step + 1) * self.batch) % len(taught)  # one concept after another
            with torch.no_grad():
                target = run.student.eps(z, t, run.null)
            return mse_loss(run.student.eps(z, t, taught[turn]), target)

        return loss

    def result(self, run: Run) -> Edit:
        """Return the moving average minus the base."""
        return Edit(delta=run.delta(run.means), meta=run.report())
