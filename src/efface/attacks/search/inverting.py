"""Inversion of pictures to token vectors, many at once: each row is trained as if it were alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface import registry
from efface.attack import Attack, Need, Target
from efface.attacks.search.objective import Loss, Objective
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.models.model import Model
from efface.models.token_vectors import Slots, encode, ids_of, slots, table
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer
from efface.util.ranges import COUNT, DECAY, GUIDANCE, RATE, ROWS, Ranges

# Our own short list of captions; the published ones differ by adjectives only.
TEMPLATES = {
    "style": ("art by {}", "a painting by {}", "a picture in the style of {}", "{} art", "an image in the style of {}"),
    "object": ("a photo of a {}", "a picture of a {}", "a {}", "an image of a {}", "one {}", "a good photo of the {}"),
    "identity": ("a photo of {}", "a picture of {}", "{}", "an image of {}"),
    "unsafe": ("a photo of {}", "a picture of {}", "{}", "an image of {}"),
}
OTHERS = 0.5  # spread of the other attempts' starts, in standard deviations of the embedding table


@dataclass(frozen=True)
class Inverting(Attack):
    """Base class of attacks that learn token vectors from pictures of the concept.

    Args:
        vectors: token vectors that stand for the concept
        steps: of AdamW
        lr: learning rate
        batch: pictures in each step of each attempt
        weight_decay: of AdamW
        images: pictures of the concept by the original model
        folder: pictures of the concept to learn from instead
        loss: noise regresses the pictures' noise; score matches the original model's guided prediction of the concept;
            auto is score against guards, where noise has nothing to learn from
        guidance: of both sides of score
        at_once: pictures in memory at once
    """

    vectors: int = 1
    steps: int = 1000
    lr: float = 5e-3
    batch: int = 4
    weight_decay: float = 1e-2
    images: int = 25
    folder: str = ""
    loss: Loss = "auto"
    guidance: float = 7.5
    at_once: int = 64

    NEEDS: ClassVar[tuple[Need, ...]] = ("original", "text encoder")
    RANGES: ClassVar[Ranges] = {
        "vectors": "[1, 64]", "steps": COUNT, "lr": RATE, "batch": ROWS, "weight_decay": DECAY, "images": COUNT,
        "guidance": GUIDANCE, "at_once": ROWS,
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Words:
    """Hold the first vectors of each row."""

    vectors: Float[Tensor, "n k dim"]

    @classmethod
    def beside(cls, model: Model, text: str, count: int, rows: int, seed: int) -> "Words":
        """Start the first row at the tokens of a text, repeated to `count`, and the others at random beside it."""
        known, ids = table(model), ids_of(model, text)
        first = known[[ids[i % len(ids)] for i in range(count)]]
        noise = torch.randn(rows, *first.shape, generator=generator(seed, "start")).to(first) * known.std()
        noise[0] = 0
        return cls(first + OTHERS * noise)


@dataclass(frozen=True, eq=False)
class Inverted:
    """Hold what was learned.

    losses: each row's mean loss of the last tenth of the steps. history: the rows' mean loss of every step.
    """

    vectors: Float[Tensor, "n k dim"]
    losses: Float[Tensor, " n"]
    history: list[float]
    cost: dict[str, int]


def invert(
    attack: Inverting,
    target: Target,
    concept: Concept,
    like: Query,
    words: Words,
    seed: int,
    constrain: Callable[[Tensor], Tensor] | None = None,
    penalty: Callable[[Tensor], Tensor] | None = None,
    templates: Sequence[str] = (),
) -> Inverted:
    """Learn vectors with which the edited model generates pictures of the concept; resumes from checkpoints.

    Every row has its own pictures, timesteps, noise and captions, drawn from the seed, its number and the step, so a
    row's result does not depend on the others (by rounding only), unless `constrain` or `penalty` couples them.

    like: how the pictures are generated. constrain: (n, k, dim) -> the nearest allowed vectors, applied after each
    step. penalty: (n, k, dim) -> a number that is added to the sum of the losses. templates: captions with {}.
    """
    model, texts = target.edited, tuple(templates) or TEMPLATES[concept.kind]
    latents = pictures(target, concept.texts, attack.images, like, seed, attack.folder)
    objective = Objective(target, latents, attack.loss, _wanted(target, concept), attack.guidance)
    vectors = nn.Parameter((constrain(words.vectors) if constrain else words.vectors).clone())
    rows, batch = len(vectors), attack.batch
    captions = slots(model, texts, vectors.shape[1])
    parts = torch.arange(rows).split(max(1, attack.at_once // batch))
    last = torch.zeros(rows)  # sum of the losses of the last tenth of the steps
    tail = max(1, attack.steps // 10)

    def loss(draws: int) -> Tensor:
        step, number = divmod(draws, len(parts))
        chosen = parts[number].tolist()
        rngs = [generator(seed, "row", row, step, i) for row in chosen for i in range(batch)]
        which = [int(torch.randint(len(texts), (1,), generator=rng)) for rng in rngs]
        filled = Slots(tuple(captions.prompts[i] for i in which), captions.at[which])
        own = vectors[chosen].repeat_interleave(batch, 0)
        errors = objective(encode(model, filled, own), objective.draw(rngs)).view(len(chosen), batch).mean(1)
        if step >= attack.steps - tail:
            last[chosen] += errors.detach().cpu() / tail
        total = errors.sum() * len(parts)  # the loop takes the mean over parts; each row's gradient is its own
        return total + penalty(vectors) if penalty else total

    @torch.no_grad()
    def updated() -> None:
        if constrain:
            vectors.copy_(constrain(vectors))

    adam = optimizer("adamw", [vectors], attack.lr, attack.weight_decay)
    state = State({"vectors": vectors, "last": last}, {"main": adam})
    about: dict[str, Any] = {
        "attack": registry.to_json(attack), "concept": concept.to_json(), "seed": seed, "edited": model.id,
        "captions": list(texts), "rows": rows,
    }  # fmt: skip
    with torch.inference_mode(False), torch.enable_grad():
        descend(
            loss, state, attack.steps, label=f"inverting {concept.name}", run=about, stage="inversion",
            updated=updated, accumulate=len(parts),
        )  # fmt: skip
    seen = attack.steps * rows * batch
    made = 0 if attack.folder else attack.images
    cost = {
        "images": made, "calls": seen * objective.calls + made * like.steps * (1 + (like.guidance != 1)),
        "backward": seen, "texts": seen,
    }  # fmt: skip
    history = [value / rows for value in state.history["loss"]]
    return Inverted(vectors.detach().clone(), last, history, cost)


def _wanted(target: Target, concept: Concept) -> Any:
    return None if target.original is None else target.original.encode([concept.texts[0]])


__all__ = ["Inverted", "Inverting", "Words", "invert"]
