"""Textual inversion: learned vectors in place of a concept's words.

Gal et al. 2022, https://arxiv.org/abs/2208.01618.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from efface.context import Context
from efface.methods.finetune.method import Run
from efface.models.attention import end_positions
from efface.models.images import noised
from efface.models.token_vectors import encode, ids_of, slots, table
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer


class Inverted(NamedTuple):
    """Hold the context of a prompt with the learned vectors, their positions, and those of the end token."""

    context: Context
    at: list[int]
    ends: list[int]


def invert(
    run: Run,
    latents: Float[Tensor, "n ch h w"],
    prompt: str,
    name: str,
    stage: str,
    steps: int,
    lr: float,
    count: int,
    weight_decay: float,
    length: float,
    batch: int = 1,
) -> Inverted:
    """Learn `count` token vectors in place of {} in `prompt`, with which the original model generates `latents`.

    The first half starts at the tokens of `name`, the second half at random (standard normal). After every step of
    AdamW the lengths of the vectors move towards `length`, by a share of 100 lr; 0 leaves them alone. With two text
    encoders (SDXL) a vector is both encoders' side by side. Raises `BadInput` for a model whose text encoders read no
    common tokens, and for a prompt without {} or without room.
    """
    model = run.base
    filled, known, own = slots(model, [prompt], count), table(model), ids_of(model, name)
    start = known[[own[i % len(own)] for i in range(count)]]
    noise = torch.randn(start.shape, generator=generator(run.seed, stage)).to(start.device)
    vectors = nn.Parameter(torch.cat([start[: count // 2], noise[count // 2 :]]))

    def loss(step: int) -> Tensor:
        run.rng = generator(run.seed, stage, step)
        chosen, t, noise = run.pick(len(latents), batch), run.times(batch), run.noise(batch)
        target = model.family.schedule.target(latents[chosen], noise)
        return mse_loss(
            model.eps(noised(model, latents[chosen], noise, t), t, encode(model, filled, vectors[None])), target
        )

    @torch.no_grad()
    def shorten() -> None:
        old = vectors.norm(dim=1, keepdim=True)
        vectors.mul_((old + min(1.0, 100 * lr) * (length - old)) / old)

    state = State({"vectors": vectors}, {"main": optimizer("adamw", [vectors], lr, weight_decay)})
    after = shorten if length else lambda: None
    descend(loss, state, steps, label=f"inverting {name}", run=run.about, stage=stage, updated=after)
    with torch.no_grad():
        context = encode(model, filled, vectors[None]).float()
    return Inverted(context, filled.at[0].tolist(), end_positions(model, filled.prompts[0]))
