"""Task vectors: fine-tune on the concept without a prompt, then move the weights in the opposite direction.

Pham et al. 2024, Robust Concept Erasure Using Task Vectors, https://arxiv.org/abs/2404.03631.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.models.images import folder_latents, noised
from efface.util.ranges import COUNT, GUIDANCE, OR_NONE, ROWS, SOLVER_STEPS, Ranges


@dataclass(frozen=True)
class TaskVector(FineTune):
    """Erase concepts by −α (θ_ft − θ), θ_ft fine-tuned on images of them under the empty prompt.

    `preserve` is not used. The edit can be scaled and pruned, so one training serves every α and choice of blocks.

    Args:
        alpha: scale α of the step; 0 changes nothing
        images: images to train on; the original model generates those that are not real
        real: how many of them are real, the first ones of the folder; without a folder none is
        folder: folder with real images of the concepts, or none
        image_steps: solver steps of each generated image
        image_batch: images generated at once
        guidance: guidance scale of each generated image
        flip: mirror half of the images that a step draws
        ema: take the moving average of the weights for θ_ft
        only: edit these weights only, by block word (down, mid, up, attn1, attn2), part of the name or pattern
        without: leave these weights as they are
    """

    lr: float = 1e-5  # "a learning rate of 1e-05", for "1000 steps": section 9
    params: str = "full"  # "we fine-tune the UNet component"
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"  # this and the next two: the training script it uses
    weight_decay: float = 0.01
    clip: float = 1.0
    gradient_checkpointing: bool = True
    batch: int = 4  # this and the next: of the script with which its code trains; the paper does not say
    accumulate: int = 4
    alpha: float = 1.75  # the paper tunes it for each concept; that of the script with which its code saves
    images: int = 30  # "15 synthetic images and 15 real images obtained from Google Images (30 in total)"
    real: int = 15
    folder: str = ""
    image_steps: int = 50
    image_batch: int = 4
    guidance: float = 7.5
    flip: bool = False
    ema: bool = False
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    RANGES: ClassVar[Ranges] = {
        "alpha": "[-1000, 1000]", "images": COUNT, "real": OR_NONE, "image_steps": SOLVER_STEPS,
        "image_batch": ROWS, "guidance": GUIDANCE,
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo-2025": {
            "steps": 200,
            "images": 200,
            "real": 0,
            "flip": True,
            "ema": True,
        },
        "mini": {
            "steps": 100,
            "lr": 1e-4,
            "batch": 8,
            "accumulate": 1,
            "gradient_checkpointing": False,
            "images": 24,
            "real": 12,
            "image_steps": 10,
            "image_batch": 32,
            "alpha": 1.5,
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "batch": 1, "accumulate": 1, "images": 2, "image_steps": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder and not 0 < self.real <= self.images:
            raise BadInput(f"with a folder, real must be 1 to {self.images} (images), got {self.real}")

    def objective(self, run: Run) -> Loss:
        """Return ‖ε_θ(z_t, ∅) − ε‖² over noised images of the concepts."""
        clean = self._latents(run)
        if self.ema:
            run.track_average(0.0)

        def loss(step: int) -> Float[Tensor, ""]:
            if self.ema:
                run.decay = growing_decay(run.state.step)
            chosen, t, noise = run.pick(len(clean), self.batch), run.times(self.batch), run.noise(self.batch)
            z = clean[chosen, run.pick(clean.shape[1], self.batch)]
            target = run.base.family.schedule.target(z, noise)
            return mse_loss(run.student.eps(noised(run.base, z, noise, t), t, run.null), target)

        return loss

    def result(self, run: Run) -> Edit:
        """Return −α τ on the chosen weights."""
        tau = run.delta(run.means if self.ema else None)
        edit = Edit(delta={name: -self.alpha * value for name, value in tau.items()})
        meta = {**run.report(), "images": {"real": self._real, "generated": self.images - self._real}}
        return replace(edit.prune(self.only, self.without), meta=meta)

    @property
    def _real(self) -> int:
        return self.real if self.folder else 0

    def _latents(self, run: Run) -> Float[Tensor, "n sides ch h w"]:
        """Return latents of the images, each alone or beside its mirror image."""
        found = []
        if self.folder:
            found.append(folder_latents(run.base, self.folder)[: self.real].to(run.base.device))
            if len(found[0]) < self.real:
                count = len(found[0])
                raise BadInput(f"{self.folder} has {count} of {self.real} images: add some, or set real to {count}")
        if self.images > self._real:
            prompts = [text for concept in run.erase for text in training_prompts(concept)]  # section 9
            images = (self.images - self._real, self.image_steps, self.guidance, self.image_batch)
            found.append(generated_latents(run, "images", prompts, *images))
        clean = torch.cat(found)
        if not self.flip:
            return clean[:, None]

        def mirror() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"latents": run.base.encode_images(run.base.decode(clean).flip(-1))}

        return torch.stack([clean, run.once("mirrored", mirror)["latents"].to(clean.device)], 1)


def growing_decay(step: int) -> float:
    """Return the decay of diffusers' `EMAModel` after a step, counted from 0: its defaults, as the script uses them."""
    return min(0.9999, (1 + step) / (10 + step)) if step else 0.0
