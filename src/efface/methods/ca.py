"""Concept Ablation: train the prediction for a concept's prompts to match that for its anchor's prompts.

Kumari et al. 2023, https://arxiv.org/abs/2303.13516.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.methods.finetune.images import generated_latents
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.methods.finetune.parameters import detach_start, only_tokens
from efface.methods.finetune.resize import WORDS, masked_error, resized
from efface.models.images import noised
from efface.util.ranges import COUNT, GUIDANCE, RATE_OR_NONE, ROWS, SOLVER_STEPS, WEIGHT_OR_NONE, Ranges

EMBEDDING = "embedding"  # the set of weights
Contexts = Callable[[Tensor], Context]  # (numbers of prompts) -> their contexts


@dataclass(frozen=True)
class CA(FineTune):
    """Map concepts to their anchors, on images of the anchors that the model itself generates.

    An object is replaced by its anchor (its family if it has none) in every template. A style is removed from prompts
    of the preserved concepts, or of `contents` when none are preserved.

    Args:
        images: images of the anchors, generated once by the original model
        image_steps: solver steps of each image
        guidance: guidance scale of each image
        image_batch: images made at once while preparing
        away: generate the anchors' images with the concept as negative prompt
        augment: make the anchors' images smaller or larger at random, and say so in the concept's prompt
        target: model matches the network's own prediction for the anchor, noise the noise that was added
        embedding_lr: learning rate of the token embeddings of all text encoders, which are trained too; 0 leaves them
        prior: weight of the plain diffusion loss on the anchors' images, for an anchor that includes the concept
        detach_start: no gradient to keys and values of cross-attention through the start token, which all prompts share
        templates: prompts with {} for the concept or, for a style, for a content
        contents: objects that a style is erased from
        forms: prompts about a style, each as often; {0} is the prompt about a content, {1} the style's name
    """

    steps: int = 100  # 100 steps on two GPUs in its code
    lr: float = 1.6e-5  # "--learning_rate=2e-6 --scale_lr": times batch 4 times two GPUs
    batch: int = 8  # "--train_batch_size=4" on each of two GPUs
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    clip: float = 0.25  # "--max_grad_norm" 1 of a loss that is summed over four channels, which is here a mean
    params: str = "x-strict"  # "cross-attn": keys and values
    images: int = 1000  # "200; 1000 used in paper"
    image_steps: int = 25
    guidance: float = 6.0
    image_batch: int = 4
    away: bool = False
    augment: bool = False  # its code: for objects, not for styles ("--noaug")
    target: Literal["model", "noise"] = "model"
    embedding_lr: float = 0.0
    prior: float = 0.0  # "When training for grumpy cat, we also add with_prior_preservation"
    detach_start: bool = True
    templates: tuple[str, ...] = ("a picture of a {}", "a photo of a {}", "a drawing of a {}", "a {}", "{}")
    contents: tuple[str, ...] = ("house", "tree", "dog", "woman", "city", "flower", "boat", "mountain")
    forms: tuple[str, ...] = ("{0}, in the style of {1}", "in {1}'s style, {0}", "in {1}'s style, {0}")  # one in three

    RANGES: ClassVar[Ranges] = {
        "images": COUNT, "image_steps": SOLVER_STEPS, "image_batch": ROWS, "guidance": GUIDANCE,
        "prior": WEIGHT_OR_NONE, "embedding_lr": RATE_OR_NONE,
    }  # fmt: skip

    # with_prior_preservation doubles the rate that scale_lr gives. Its prior_loss_weight of 1 is 1/4 here: its main
    # loss is summed over the four channels of the latents, its prior is a mean.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "object": {"augment": True},
        "overlap": {"augment": True, "prior": 0.25, "lr": 3.2e-5},  # a concept within its anchor: grumpy cat, cat
        "overlap-compvis": {
            "augment": True,
            "prior": 0.2,
            "batch": 4,
            "clip": 0.0,
        },  # its older code, which halves the batch
        "nudity": {  # added after publication, for one GPU: 4e-6 times batch 4, doubled
            "steps": 800,
            "lr": 3.2e-5,
            "batch": 4,
            "params": "attn",
            "prior": 0.25,
            "away": True,
        },
        "mini": {
            "steps": 80,
            "lr": 6e-4,
            "batch": 4,
            "images": 32,
            "image_steps": 10,
            "image_batch": 32,
            "prior": 1.0,
            "clip": 0.0,
            "forms": ("{0} in the style of {1}",),
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "images": 2, "image_steps": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.templates or not self.contents:
            raise BadInput("templates and contents need at least one text each")
        if not self.forms or any(form.count("{0}") != 1 or form.count("{1}") != 1 for form in self.forms):
            raise BadInput(
                f"forms are texts with {{0}} for the content and {{1}} for the style, got {list(self.forms)}"
            )
        if self.embedding_lr and self.params == EMBEDDING:
            raise BadInput("params are the token embeddings already: set lr, and leave embedding_lr at 0")

    def rates(self) -> dict[str, float]:
        """Return params, and the token embeddings if they are trained too."""
        return super().rates() | ({EMBEDDING: self.embedding_lr} if self.embedding_lr else {})

    def objective(self, run: Run) -> Loss:
        """Return ‖ε_θ(x_t, c*) − sg ε_θ(x_t, c)‖² + prior ‖ε_θ(x_t, c) − ε‖², x_t a noised image of the anchor c."""
        pairs = [pair for concept in run.erase for pair in self.prompts(concept, run.preserve)]
        anchors, targets = ([pair[i] for pair in pairs] for i in (0, 1))
        clean = self._images(run, anchors)
        if self.detach_start:
            detach_start(run.student)
        if self.params == EMBEDDING:
            only_tokens(run.student, [concept.name for concept in run.erase], run.state.optimizers["main"])
        words = WORDS if self.augment else WORDS[:1]
        c = self._contexts(run, anchors)
        c_star = self._contexts(run, [word + text for word in words for text in targets])

        def loss(step: int) -> Float[Tensor, ""]:
            chosen, t, noise = run.pick(len(clean), self.batch), run.times(self.batch), run.noise(self.batch)
            row, x_0, mask = chosen % len(pairs), clean[chosen], None
            told = row
            if self.augment:
                x_0, mask, word = resized(run.base, x_0, run.rng)
                told = row + len(pairs) * word
            x_t = noised(run.base, x_0, noise, t)
            with torch.no_grad():
                known = run.base.family.schedule.target(x_0, noise)
                goal = known if self.target == "noise" else run.student.eps(x_t, t, c(row))
            value = masked_error(run.student.eps(x_t, t, c_star(told)) - goal, mask)
            return value + self.prior * plain() if self.prior else value

        def plain() -> Float[Tensor, ""]:
            chosen, t, noise = run.pick(len(clean), self.batch), run.times(self.batch), run.noise(self.batch)
            x_t = noised(run.base, clean[chosen], noise, t)
            target = run.base.family.schedule.target(clean[chosen], noise)
            return masked_error(run.student.eps(x_t, t, c(chosen % len(pairs))) - target)

        return loss

    def prompts(self, concept: Concept, preserve: Sequence[Concept]) -> list[tuple[str, str]]:
        """Return pairs (about the anchor, about the concept)."""
        if concept.kind != "style":
            anchor = concept.anchor or concept.family
            return [(t.format(anchor) if anchor else "", t.format(concept.name)) for t in self.templates]
        shown = [other.name for other in preserve if other.kind != "style"] or self.contents
        plain = [t.format(content) for content in shown for t in self.templates]
        return [
            (form.format(text, concept.anchor) if concept.anchor else text, form.format(text, concept.name))
            for text in plain
            for form in self.forms
        ]

    def _images(self, run: Run, anchors: list[str]) -> Float[Tensor, "n ch h w"]:
        names = [concept.name for concept in run.erase for _ in self.prompts(concept, run.preserve)]
        draw = (self.images, self.image_steps, self.guidance, self.image_batch)
        return generated_latents(run, "anchors", anchors, *draw, negative=names if self.away else ())

    def _contexts(self, run: Run, texts: list[str]) -> Contexts:
        """Return contexts of texts by number: fixed ones, or the student's own while its token embeddings train."""
        if EMBEDDING in self.rates():
            return lambda rows: run.student.encode([texts[i] for i in rows.tolist()])
        fixed = run.contexts(texts)
        return lambda rows: fixed[rows]
