"""Concept Ablation: train the prediction for a concept's prompts to match that for its anchor's prompts.

Kumari et al. 2023, https://arxiv.org/abs/2303.13516.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.concept import Concept
from efface.methods.finetune.images import generated_latents
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.methods.finetune.parameters import detach_start, only_tokens
from efface.models.images import noised


@dataclass(frozen=True)
class CA(FineTune):
    """Map concepts to their anchors, on images of the anchors that the model itself generates.

    An object is replaced by its anchor (its family if it has none) in every template. A style is removed from prompts
    of the preserved concepts, or of `contents` when none are preserved.

    Args:
        images: images of the anchors, generated once by the original model
        image_steps: solver steps of each image
        guidance: guidance scale of each image
        target: model matches the network's own prediction for the anchor, noise the noise that was added
        prior: weight of the plain diffusion loss on the anchors' images
        detach_start: no gradient to keys and values through the start token, which all prompts share
        templates: prompts with {} for the concept or, for a style, for a content
        contents: objects that a style is erased from
    """

    steps: int = 100  # 100 steps on two GPUs in its code
    lr: float = 1.6e-5  # 2e-6 times batch times GPUs (scale_lr)
    batch: int = 8  # 4 on each of two GPUs
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    params: str = "x-strict"  # keys and values of cross-attention
    images: int = 1000  # recommended by its readme
    image_steps: int = 25
    guidance: float = 6.0
    target: Literal["model", "noise"] = "model"
    prior: float = 1.0
    detach_start: bool = True
    templates: tuple[str, ...] = ("a picture of a {}", "a photo of a {}", "a drawing of a {}", "a {}", "{}")
    contents: tuple[str, ...] = ("house", "tree", "dog", "woman", "city", "flower", "boat", "mountain")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "nudity": {"steps": 800, "lr": 4e-6, "batch": 4, "params": "attn"},  # added after publication
        "memorization": {"steps": 400, "lr": 5e-7, "batch": 2, "params": "full"},
        "mini": {"steps": 80, "lr": 3e-4, "batch": 4, "images": 32, "image_steps": 10},
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "images": 2, "image_steps": 2}

    def objective(self, run: Run) -> Loss:
        """Return ‖ε_θ(x_t, c*) − sg ε_θ(x_t, c)‖² + prior ‖ε_θ(x_t, c) − ε‖², x_t a noised image of the anchor c."""
        pairs = [pair for concept in run.erase for pair in self.prompts(concept, run.preserve)]
        anchors, targets = ([pair[i] for pair in pairs] for i in (0, 1))
        clean = generated_latents(run, "anchors", anchors, self.images, self.image_steps, self.guidance)
        c, c_star = run.contexts(anchors), run.contexts(targets)
        if self.detach_start:
            detach_start(run.student)
        if embedding := self.params == "embedding":
            only_tokens(run.student, [concept.name for concept in run.erase], run.state.optimizers["main"])

        def loss(step: int) -> Float[Tensor, ""]:
            chosen, t, noise = run.pick(len(clean), self.batch), run.times(self.batch), run.noise(self.batch)
            x_t, row = noised(run.base, clean[chosen], noise, t), chosen % len(pairs)
            context = run.student.encode([targets[i] for i in row]) if embedding else c_star[row]
            with torch.no_grad():
                goal = noise if self.target == "noise" else run.student.eps(x_t, t, c[row])
            value = mse_loss(run.student.eps(x_t, t, context), goal)
            return value + self.prior * mse_loss(run.student.eps(x_t, t, c[row]), noise) if self.prior else value

        return loss

    def prompts(self, concept: Concept, preserve: Sequence[Concept]) -> list[tuple[str, str]]:
        """Return pairs (about the anchor, about the concept)."""
        if concept.kind != "style":
            anchor = concept.anchor or concept.family
            return [(t.format(anchor) if anchor else "", t.format(concept.name)) for t in self.templates]
        shown = [other.name for other in preserve if other.kind != "style"] or self.contents
        plain = [t.format(content) for content in shown for t in self.templates]
        anchor = f" in the style of {concept.anchor}" if concept.anchor else ""
        return [(text + anchor, f"{text} in the style of {concept.name}") for text in plain]
