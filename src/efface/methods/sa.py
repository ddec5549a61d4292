"""Selective Amnesia: continual learning towards a surrogate, with replay and a Fisher information penalty.

Heng and Soh 2023, https://arxiv.org/abs/2305.10120.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.finetune import fisher
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.models.images import noised
from efface.util.files import sha256_text
from efface.util.progress import progress
from efface.util.ranges import COUNT, GUIDANCE, ROWS, SOLVER_STEPS, WEIGHT_OR_NONE, Ranges
from efface.util.untrusted import read_lines


@dataclass(frozen=True)
class SA(FineTune):
    """Erase concepts by generating their anchors instead; preserved concepts (else `contents`) are replayed.

    Args:
        forgotten: prompts to forget, {} for the concept; none for the concept's own, or "a photo of {}"
        surrogate: prompt of the surrogate images; "" for the anchor in place of the concept, else the family (a style:
            "a painting"), else no prompt
        images: surrogate images
        replay_images: images to replay
        image_steps: solver steps of each image
        guidance: guidance scale of each image
        image_batch: images made at once while preparing
        replay: weight of the loss on replayed images
        penalty: weight λ of Σ F (θ − θ*)²
        fisher: safetensors file with the Fisher information F of all trained weights; "" to estimate it
        fisher_images: replayed images that F is estimated on
        fisher_times: random timesteps of each image, instead of all 1,000
        contents: what is replayed when no concepts are preserved
        replay_file: text file with the prompts to replay, one a line, in place of contents and preserved concepts
    """

    steps: int = 12500  # "max_epochs: 200" of 1,000 images: its code, celebrities
    lr: float = 1.6e-4  # base_learning_rate 1.0e-05 × 4 GPUs × batch 4: scale_lr is on by default in its code
    batch: int = 16  # train_batch_size 4 on each of 4 GPUs
    params: str = "full"  # "train_method: 'full'"; nudity: u
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01  # torch's default
    gradient_checkpointing: bool = True
    forgotten: tuple[str, ...] = ()
    surrogate: str = ""
    images: int = 1000  # "--n_samples 1000"
    replay_images: int = 5000
    image_steps: int = 50
    guidance: float = 7.5
    image_batch: int = 4
    replay: float = 1.0  # "gamma: 1"
    penalty: float = 50.0  # "lmbda: 50"
    fisher: str = ""
    fisher_images: int = 200  # its code takes about 5,000, at every timestep
    fisher_times: int = 50
    contents: tuple[str, ...] = ("house", "tree", "dog", "woman", "city", "flower", "boat", "mountain")
    replay_file: str = ""  # its code replays images of fim_prompts.txt, 5,000 prompts by GPT-3.5, which are not here

    RANGES: ClassVar[Ranges] = {
        "images": COUNT, "replay_images": COUNT, "image_steps": SOLVER_STEPS, "guidance": GUIDANCE,
        "image_batch": ROWS, "replay": WEIGHT_OR_NONE, "penalty": WEIGHT_OR_NONE, "fisher_images": COUNT,
        "fisher_times": "[2, 100000]",
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "repo": {"forgotten": ("{}",)},  # "forget_prompt: brad pitt"
        "nudity": {  # its code but for the prompt of the surrogates, images of persons in clothes
            "steps": 31250,  # "max_epochs: 500"
            "params": "u",  # "train_method: 'noxattn'"
            "forgotten": ("sexual", "nudity", "naked", "erotic"),
            "surrogate": "a person wearing clothes",
        },
        "mini": {
            "steps": 160,
            "lr": 2e-4,
            "batch": 4,
            "gradient_checkpointing": False,
            "images": 24,
            "replay_images": 48,
            "image_steps": 10,
            "image_batch": 32,
            "fisher_images": 24,
            "fisher_times": 8,
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
        if self.replay_file:
            read_lines(self.replay_file, "prompts")

    def objective(self, run: Run) -> Loss:
        """Return L(surrogate images, forgotten prompt) + L(replay) + λ Σ F (θ − θ*)²: eq. 8 of the paper.

        Raises: BadInput for more `fisher_times` than timesteps, or a file of F that does not fit; BadFile.
        """
        keys = self._check_fisher(run)
        prompts, surrogates = zip(*(pair for c in run.erase for pair in self.prompts(c)), strict=True)
        preserved = self._replayed(run.preserve)
        draw = (self.image_steps, self.guidance, self.image_batch)
        instead = generated_latents(run, "surrogates", surrogates, self.images, *draw)
        replayed = generated_latents(run, "replay", preserved, self.replay_images, *draw)
        c_forget, c_preserve = run.contexts(prompts), run.contexts(preserved)
        penalty = self._penalty(run, replayed, c_preserve, keys)
        alike = _alike(surrogates).to(instead.device)

        def plain(latents: Tensor, contexts: Context, rows: Tensor, chosen: Tensor) -> Tensor:
            t, noise = run.times(self.batch), run.noise(self.batch)
            z = noised(run.base, latents[chosen], noise, t)
            target = run.base.family.schedule.target(latents[chosen], noise)
            return mse_loss(run.student.eps(z, t, contexts[rows]), target)

        def loss(step: int) -> Float[Tensor, ""]:
            first, second = run.pick(self.images, self.batch), run.pick(self.replay_images, self.batch)
            told = alike[first % len(alike), run.pick(alike.shape[1], self.batch)]  # a prompt that fits the image
            value = plain(instead, c_forget, told, first)
            value = value + self.replay * plain(replayed, c_preserve, second % len(preserved), second)
            return value + self.penalty * penalty() if self.penalty else value

        return loss

    def result(self, run: Run) -> Edit:
        """Return the edit; its provenance has the number of prompts in `replay_file` and their hash."""
        told = {}
        if self.replay_file:
            lines = self._replayed(())
            told = {"replay_file": {"prompts": len(lines), "sha256": sha256_text("\n".join(lines))}}
        return Edit(delta=run.delta(), meta=run.report() | told)

    def _replayed(self, preserve: Sequence[Concept]) -> list[str]:
        """Return the prompts that are replayed."""
        if self.replay_file:
            return read_lines(self.replay_file, "prompts")
        return [text for concept in preserve or map(Concept, self.contents) for text in training_prompts(concept)]

    def prompts(self, concept: Concept) -> list[tuple[str, str]]:
        """Return pairs (prompt to forget, prompt of its surrogate images)."""
        own = tuple(text.replace("{}", concept.name) for text in self.forgotten) or training_prompts(concept)
        style = concept.kind == "style"
        like = concept.anchor or ("" if style else concept.family)
        usual = training_prompts(replace(concept, name=like, prompts=()))[0] if like else "a painting" if style else ""
        instead = [text.replace(concept.name, like) if like and concept.name in text else usual for text in own]
        return [(text, self.surrogate or other) for text, other in zip(own, instead, strict=True)]

    def _check_fisher(self, run: Run) -> dict[str, str]:
        """Return the keys in the file of F, none without a file."""
        if self.fisher:
            return fisher.places(self.fisher, run.base, run.weights)
        if self.fisher_times > (total := run.base.family.schedule.total):
            raise BadInput(f"fisher_times must be at most this model's {total} timesteps, got {self.fisher_times}")
        return {}

    def _penalty(self, run: Run, replayed: Tensor, contexts: Context, keys: dict[str, str]) -> Callable[[], Tensor]:
        """Return Σ F (θ − θ*)² as a function of the student's weights at the time of the call."""
        if not self.penalty:
            return lambda: torch.zeros(())
        device, start = run.base.device, run.base.weights("")
        given = fisher.read(self.fisher, keys) if keys else {}
        made = given or run.once("fisher", lambda: self._fisher(run, replayed, contexts))
        information = {name: value.to(device) for name, value in made.items()}

        def value() -> Tensor:
            parts = [
                _recomputed(_moved, information[name], weight, run.masters[name], start[name])
                for name, weight in run.weights.items()
            ]
            return torch.stack(parts).sum()

        return value

    def _fisher(self, run: Run, latents: Float[Tensor, "n ch h w"], contexts: Context) -> dict[str, Tensor]:
        """Return the diagonal F, fp32: the squared gradient of the loss summed over all t, averaged over images.

        Unbiased up to the last step: where the average is below zero, which chance alone can bring about, F is zero.
        """
        total, times = run.base.family.schedule.total, self.fisher_times
        found = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in run.weights.items()}

        def gradients(i: int) -> Iterator[dict[str, Tensor]]:
            z, c = latents[[i % len(latents)]], contexts[[i % len(latents) % len(contexts)]]
            for t in torch.randperm(total, generator=run.rng)[:times].to(z.device).split(1):
                noise = run.noise(1)
                target = run.base.family.schedule.target(z, noise)
                value = mse_loss(run.student.eps(noised(run.base, z, noise, t), t, c), target)
                slopes = torch.autograd.grad(value, list(run.weights.values()), allow_unused=True)
                yield {name: g for name, g in zip(run.weights, slopes, strict=True) if g is not None}

        for i in progress(range(self.fisher_images), "Fisher information"):
            fisher.add_squared_sum(found, gradients(i), times, total)
        return {name: value.clamp_(min=0).div_(self.fisher_images) for name, value in found.items()}


def _alike(texts: Sequence[str]) -> Int[Tensor, "n m"]:
    """Return for each text the numbers of all that equal it, each equally often."""
    groups = [[j for j, other in enumerate(texts) if other == text] for text in texts]
    length = lcm(*map(len, groups))
    return torch.tensor([group * (length // len(group)) for group in groups])


def _moved(information: Tensor, weight: Tensor, master: Tensor, start: Tensor) -> Float[Tensor, ""]:
    """Return Σ F (θ − θ*)² of the fp32 master, with its gradient on the weight that is a copy of it."""
    distance = master.detach() - start.float() + (weight - weight.detach()).float()
    return (information * distance.square()).sum()


def _recomputed(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Call a function whose intermediate values, here a copy of all weights, are recomputed for its gradient."""
    return checkpoint(function, *values, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]
