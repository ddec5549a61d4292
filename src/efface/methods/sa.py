"""Selective Amnesia: continual learning towards a surrogate, with replay and a Fisher information penalty.

Heng and Soh 2023, https://arxiv.org/abs/2305.10120.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.models.images import noised
from efface.util.progress import progress


@dataclass(frozen=True)
class SA(FineTune):
    """Erase concepts by generating their anchors instead; preserved concepts (else `contents`) are replayed.

    Args:
        images: surrogate images: of the anchors, else the families, else of no prompt
        replay_images: images to replay
        image_steps: solver steps of each image
        guidance: guidance scale of each image
        replay: weight of the loss on replayed images
        penalty: weight λ of Σ F (θ − θ*)²
        fisher_images: replayed images that F is estimated on
        fisher_times: random timesteps of each image, instead of all 1,000
        contents: what is replayed when no concepts are preserved
    """

    steps: int = 12500  # 200 epochs of 1,000 images: its code, celebrities
    batch: int = 16  # 4 on each of 4 GPUs
    params: str = "full"  # nudity: u
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    images: int = 1000
    replay_images: int = 5000
    image_steps: int = 50
    guidance: float = 7.5
    replay: float = 1.0
    penalty: float = 50.0
    fisher_images: int = 200  # its code takes about 5,000, at every timestep
    fisher_times: int = 8
    contents: tuple[str, ...] = ("house", "tree", "dog", "woman", "city", "flower", "boat", "mountain")

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "nudity": {"steps": 31250, "params": "u"},  # 500 epochs, "noxattn"
        "mini": {
            "steps": 160,
            "lr": 4e-4,
            "batch": 4,
            "images": 24,
            "replay_images": 48,
            "image_steps": 10,
            "fisher_images": 24,
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "steps": 2,
        "batch": 1,
        "images": 2,
        "replay_images": 2,
        "image_steps": 2,
        "fisher_images": 2,
        "fisher_times": 2,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.fisher_images, self.fisher_times) < 1 or min(self.penalty, self.replay) < 0:
            raise BadInput("fisher_images and fisher_times must be 1 or more, penalty and replay 0 or more")

    def objective(self, run: Run) -> Loss:
        """Return L(surrogate images, forgotten prompt) + L(replay) + λ Σ F (θ − θ*)²: eq. 8 of the paper."""
        forgotten = [
            (text, like) for c in run.erase for text, like in zip(training_prompts(c), _surrogates(c), strict=True)
        ]
        preserved = [text for c in run.preserve or map(Concept, self.contents) for text in training_prompts(c)]
        draw = (self.image_steps, self.guidance)
        surrogates = generated_latents(run, "surrogates", [like for _, like in forgotten], self.images, *draw)
        replayed = generated_latents(run, "replay", preserved, self.replay_images, *draw)
        c_forget, c_preserve = run.contexts([text for text, _ in forgotten]), run.contexts(preserved)
        fisher = run.once("fisher", lambda: self._fisher(run, replayed, c_preserve))
        start = run.base.weights("")
        penalised = list(run.weights) if self.penalty else []

        def plain(latents: Tensor, contexts: Context) -> Tensor:
            chosen, t, noise = run.pick(len(latents), self.batch), run.times(self.batch), run.noise(self.batch)
            z = noised(run.base, latents[chosen], noise, t)
            return mse_loss(run.student.eps(z, t, contexts[chosen % len(contexts)]), noise)

        def loss(step: int) -> Float[Tensor, ""]:
            value = plain(surrogates, c_forget) + self.replay * plain(replayed, c_preserve)
            moved = [_recomputed(_moved, fisher[name], run.weights[name], start[name]) for name in penalised]
            return value + self.penalty * torch.stack(moved).sum() if moved else value

        return loss

    def _fisher(self, run: Run, latents: Float[Tensor, "n ch h w"], contexts: Context) -> dict[str, Tensor]:
        """Return the diagonal F: squared gradients of the loss summed over t, per image, averaged over images.

        The sum over 1,000 timesteps is estimated from `fisher_times` random ones, which makes F too large where
        the gradient varies with t.
        """
        total = {name: torch.zeros_like(p) for name, p in run.weights.items()}
        times = self.fisher_times
        for i in progress(range(self.fisher_images), "Fisher information"):
            z, c = latents[i % len(latents)].expand(times, -1, -1, -1), contexts[[i % len(latents) % len(contexts)]]
            t, noise = run.times(times), run.noise(times)
            value = run.base.family.schedule.total * mse_loss(
                run.student.eps(noised(run.base, z, noise, t), t, c), noise
            )
            for sums, g in zip(
                total.values(), torch.autograd.grad(value, list(run.weights.values()), allow_unused=True), strict=True
            ):
                if g is not None:
                    sums += g.square() / self.fisher_images
        return total


def _moved(fisher: Tensor, weight: Tensor, start: Tensor) -> Float[Tensor, ""]:
    return (fisher.to(weight.device) * (weight - start).square()).sum()


def _recomputed(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Call a function whose intermediate values, here a copy of all weights, are recomputed for its gradient."""
    return checkpoint(function, *values, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]


def _surrogates(concept: Concept) -> Sequence[str]:
    """Return, for each prompt of a concept, the prompt to generate from instead."""
    like = concept.anchor or concept.family
    own = training_prompts(replace(concept, name=like, prompts=())) if like else ("",)
    return [
        text.replace(concept.name, like) if like and concept.name in text else own[0]
        for text in training_prompts(concept)
    ]
