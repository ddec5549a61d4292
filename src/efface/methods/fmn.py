"""Forget-Me-Not: train until the image no longer attends to the concept's words.

Zhang et al. 2023, https://arxiv.org/abs/2303.17591.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept
from efface.context import Context, cat
from efface.errors import BadInput
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.methods.finetune.textual_inversion import invert
from efface.models.attention import positions, record
from efface.models.images import folder_latents, noised


@dataclass(frozen=True)
class FMN(FineTune):
    """Forget concepts by shrinking the cross-attention maps at their words; `preserve` is not used.

    Args:
        images: images of each concept, drawn by the untouched model, 0 for none
        folder: folder with more images, of the only concept
        image_steps: solver steps of each drawn image
        guidance: guidance scale of each drawn image
        inversion_steps: steps of textual inversion of the concept before; 0 takes its name
        inversion_lr: learning rate of it
        tokens: vectors of it, half of them from the name's tokens and half random
        pooler: also shrink the maps at the end token and the padding
    """

    steps: int = 35  # this and all below: its code
    lr: float = 2e-6
    params: str = "full"  # only_optimize_ca is false
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    images: int = 8
    folder: str = ""
    image_steps: int = 50
    guidance: float = 7.5
    inversion_steps: int = 0  # optional in the paper
    inversion_lr: float = 1e-3
    tokens: int = 4
    pooler: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"inversion_steps": 500},
        "mini": {  # all weights at any rate tried took the neighbours before the concept
            "steps": 60,
            "lr": 1.5e-4,
            "batch": 4,
            "params": "x",
            "pooler": True,
            "images": 16,
            "image_steps": 10,
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "images": 2, "image_steps": 2, "inversion_steps": 2}

    def objective(self, run: Run) -> Loss:
        """Return the mean over layers of ‖A‖_F, A the attention of noised images to the words of their concept."""
        if self.folder and len(run.erase) > 1:
            raise BadInput("a folder of images is for one concept: erase one at a time or leave it out")
        parts = [self._concept(run, i, concept) for i, concept in enumerate(run.erase)]
        clean = torch.cat([latents for latents, _, _ in parts])
        owner = torch.cat([torch.full((len(part[0]),), i) for i, part in enumerate(parts)]).to(clean.device)
        c, words = cat([part[1] for part in parts]), torch.stack([part[2] for part in parts])
        maps = record(run.student)

        def loss(step: int) -> Float[Tensor, ""]:
            chosen, t, noise = run.pick(len(clean), self.batch), run.times(self.batch), run.noise(self.batch)
            row = owner[chosen]
            for layer in maps.values():
                layer.clear()
            run.student.eps(noised(run.base, clean[chosen], noise, t), t, c[row])
            at_words = [map * words[row][:, None, None] for layer in maps.values() for map in layer]
            return torch.stack([map.float().flatten(1).norm(dim=1).mean() for map in at_words]).mean()

        return loss

    def _concept(self, run: Run, index: int, concept: Concept) -> tuple[Tensor, Context, Tensor]:
        """Return latents of the concept, the context of its prompt (one row) and a mask of its words (len,)."""
        prompt = training_prompts(concept)[0]
        found = [folder_latents(run.base, self.folder).to(run.base.device)] if self.folder else []
        if self.images or not found:
            stage = f"images-{index}"
            found.append(generated_latents(run, stage, [prompt], self.images, self.image_steps, self.guidance))
        latents = torch.cat(found)
        if self.inversion_steps:
            prompt = prompt.replace(concept.name, "{}")
            c, at, end = invert(
                run,
                latents,
                prompt,
                concept.name,
                f"inversion-{index}",
                self.inversion_steps,
                self.inversion_lr,
                self.tokens,
            )
        else:
            c, at, end = run.contexts([prompt]), positions(run.base, prompt, concept.name), run.base.tokens(prompt).eos
        if not at:
            raise BadInput(f"{concept.name!r} does not stand in the prompt {prompt!r}")
        words = torch.zeros(c.tokens.shape[1], device=c.device)
        words[at] = 1
        words[end:] = float(self.pooler)
        return latents, c, words
