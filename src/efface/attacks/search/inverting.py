"""Inversion of pictures to token vectors, many at once: each row is trained as if it were alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface import registry
from efface.attack import Attack, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.objective import Loss, Objective
from efface.attacks.search.phrases import phrase
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.model import Model
from efface.models.token_vectors import SLOT, Slots, encode, ids_of, slots, table
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer
from efface.util.files import sha256_tensors
from efface.util.kept import kept
from efface.util.ranges import COUNT, DECAY, GUIDANCE, RATE, ROWS, Ranges

# Our own short list of captions; the published ones differ by adjectives only.
TEMPLATES = {
    "style": ("art by {}", "a painting by {}", "a picture in the style of {}", "{} art", "an image in the style of {}"),
    "object": ("a photo of a {}", "a picture of a {}", "a {}", "an image of a {}", "one {}", "a good photo of the {}"),
    "identity": ("a photo of {}", "a picture of {}", "{}", "an image of {}"),
    "unsafe": ("a photo of {}", "a picture of {}", "{}", "an image of {}"),
}
VERSION = 1  # of what is kept of an inversion through the un-erased model
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
        folder: pictures of the concept to learn from instead, cropped to a square and resized
        captions: templates put the vectors into short texts; queries put them before each query's own prompt, whose
            pictures they are learned from (the mode for I2P's prompts, which do not name the concept)
        loss: noise regresses the pictures' noise; score matches the original model's guided prediction of the concept;
            auto is score against guards that change the guided prediction, where noise has nothing to learn from
        guidance: of both sides of score
        window: predictions, in 90 timesteps, under a guard with momentum (SLD); the last, least noisy, is learned from
        momentum: differentiated lets gradients flow through the guard's momentum; held does not, in less memory
        at_once: pictures in memory at once
    """

    vectors: int = 1
    steps: int = 1000
    lr: float = 5e-3
    batch: int = 4
    weight_decay: float = 1e-2
    images: int = 25
    folder: str = ""
    captions: Literal["templates", "queries"] = "templates"
    loss: Loss = "auto"
    guidance: float = 7.5
    window: int = 35
    momentum: Literal["differentiated", "held"] = "differentiated"
    at_once: int = 64

    NEEDS: ClassVar[tuple[Need, ...]] = ("original", "text encoder")
    RANGES: ClassVar[Ranges] = {
        "vectors": "[1, 64]", "steps": COUNT, "lr": RATE, "batch": ROWS, "weight_decay": DECAY, "images": COUNT,
        "guidance": GUIDANCE, "window": "[1, 90]", "at_once": ROWS,
    }  # fmt: skip

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check too that both models have latents of one shape, and that the vectors fit into every caption and prompt.

        Raises `BadInput`.
        """
        super().check(target, concept, queries)
        shapes = [list(model.latent_shape) for model in (target.source, target.edited)]
        if shapes[0] != shapes[1]:
            raise BadInput(f"the original model's latents have shape {shapes[0]}, the edited model's {shapes[1]}")
        slots(target.edited, (*self.texts(concept, queries), *self.phrases(concept, queries)), self.vectors)

    def phrases(self, concept: Concept, queries: Sequence[Query]) -> tuple[str, ...]:
        """Return the text with {} of each query: its prompt, with the slot for the concept's name or before it."""
        if self.captions == "templates":
            return tuple(phrase(concept, query.prompt) for query in queries)
        if not all(query.prompt.strip() for query in queries):
            raise BadInput("captions from queries need a prompt in every query, got an empty one")
        return tuple(f"{SLOT} {query.prompt.replace(SLOT, '')}" for query in queries)

    def texts(self, concept: Concept, queries: Sequence[Query]) -> tuple[str, ...]:
        """Return the captions with {} that the vectors are learned in."""
        if self.captions == "templates":
            return TEMPLATES[concept.kind]
        return tuple(dict.fromkeys(self.phrases(concept, queries)))

    def prompts(self, concept: Concept, queries: Sequence[Query]) -> tuple[str, ...]:
        """Return the original model's prompts for pictures of the concept: caption i is of prompt i, from queries."""
        if self.captions == "templates":
            return concept.texts
        return tuple(text.removeprefix(SLOT).strip() for text in self.texts(concept, queries))


@dataclass(frozen=True, eq=False)
class Words:
    """Hold the first vectors of each row.

    numbers: of the rows, which their random draws depend on; by default 0, 1, ….
    """

    vectors: Float[Tensor, "n k dim"]
    numbers: tuple[int, ...] = ()

    @classmethod
    def beside(cls, model: Model, text: str, count: int, rows: int, seed: int) -> "Words":
        """Start the first row at the tokens of a text, repeated to `count`, and the others at random beside it."""
        known, ids = table(model), ids_of(model, text)
        first = known[[ids[i % len(ids)] for i in range(count)]]
        noise = [torch.randn(first.shape, generator=generator(seed, "start", row)) for row in range(1, rows)]
        spread = OTHERS * known.std()
        return cls(torch.stack([first, *(first + spread * one.to(first) for one in noise)]))


@dataclass(frozen=True, eq=False)
class Inverted:
    """Hold what was learned.

    losses: each row's mean loss of the last tenth of the steps. history: the rows' mean loss of every step.
    """

    vectors: Float[Tensor, "n k dim"]
    losses: Float[Tensor, " n"]
    history: list[float]
    cost: dict[str, int]


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Compute the losses of rows, from all that they depend on besides their vectors.

    captions: texts with slots, of which each picture gets one; paired: that of its own prompt. numbers: as in `Words`.
    """

    model: Model
    objective: Objective
    captions: Slots
    paired: bool
    numbers: tuple[int, ...]
    seed: int
    batch: int

    def __call__(self, vectors: Float[Tensor, "n k dim"], chosen: Sequence[int], step: int) -> Float[Tensor, " r"]:
        """Return the mean loss over the batch of each chosen row in one step. Raises `BadInput` without gradient."""
        rngs = [generator(self.seed, "row", self.numbers[row], step, i) for row in chosen for i in range(self.batch)]
        texts = self.captions.prompts
        which = torch.cat([torch.randint(len(texts), (1,), generator=rng) for rng in rngs])
        drawn = self.objective.draw(rngs)
        if self.paired and drawn.picture is not None:
            which = drawn.picture % len(texts)
        filled = Slots(tuple(texts[i] for i in which.tolist()), self.captions.at[which])
        own = vectors[list(chosen)].repeat_interleave(self.batch, 0)
        errors = self.objective(encode(self.model, filled, own), drawn).view(len(chosen), self.batch).mean(1)
        if not errors.requires_grad:
            raise BadInput("no gradient reaches the token vectors: a guard or the text encoder does not pass it on")
        return errors


def invert(
    attack: Inverting,
    target: Target,
    concept: Concept,
    queries: Sequence[Query],
    words: Words,
    seed: int,
    constrain: Callable[[Tensor], Tensor] | None = None,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> Inverted:
    """Learn vectors with which the edited model generates pictures of the concept; resumes from checkpoints.

    What is learned through the un-erased model is kept, and serves against every edit of it.

    Every row has its own pictures, timesteps, noise and captions, drawn from the seed, its number and the step, so a
    row's result does not depend on the others (by rounding only), unless `constrain` or `penalty` couples them.

    queries: the first says how the pictures are generated. constrain: (n, k, dim) -> the nearest allowed vectors,
    applied to the first and after each step. penalty: (n, k, dim) -> a number that is added to the sum of the losses.
    Raises `BadInput` when no gradient reaches the vectors.
    """
    texts, prompts = attack.texts(concept, queries), attack.prompts(concept, queries)
    latents = pictures(target, prompts, attack.images, queries[0], seed, attack.folder)
    objective = _objective(attack, target, latents, prompts[:1] if attack.folder else prompts)
    start = constrain(words.vectors) if constrain else words.vectors
    numbers = words.numbers or tuple(range(len(start)))
    about: dict[str, Any] = {
        "attack": registry.to_json(attack), "concept": concept.to_json(), "seed": seed, "edited": target.edited.id,
        "original": target.original.id if target.original else "", "pictures": sha256_tensors({"": latents}),
        "captions": list(texts), "rows": list(numbers),
    }  # fmt: skip

    def learn() -> dict[str, Tensor]:
        captions, paired = slots(target.edited, texts, start.shape[1]), attack.captions == "queries"
        losses = RowLosses(target.edited, objective, captions, paired, numbers, seed, attack.batch)
        return _learn(losses, start, attack, about, constrain, penalty)

    # what the un-erased model teaches is the same for every edit of it
    plain = target.edited is target.original and not target.edited.guards
    whole = about | {"start": sha256_tensors({"": start}), "version": VERSION}
    found = kept("inversion", whole, learn) if plain else learn()
    cost = _cost(attack, target, objective, queries[0], len(start))
    return Inverted(found["vectors"].to(start), found["losses"], found["history"].tolist(), cost)


def _learn(
    losses: RowLosses,
    start: Float[Tensor, "n k dim"],
    attack: Inverting,
    about: dict[str, Any],
    constrain: Callable[[Tensor], Tensor] | None,
    penalty: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Return the vectors, the rows' mean losses of the last tenth of the steps, and the mean loss of every step."""
    vectors = nn.Parameter(start.clone())
    parts = torch.arange(len(vectors)).split(max(1, attack.at_once // attack.batch))
    last = torch.zeros(len(vectors))  # sum of the losses of the last tenth of the steps
    tail = max(1, attack.steps // 10)

    def loss(draws: int) -> Tensor:
        step, number = divmod(draws, len(parts))
        chosen = parts[number].tolist()
        errors = losses(vectors, chosen, step)
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
    with torch.inference_mode(False), torch.enable_grad():
        descend(
            loss, state, attack.steps, label=f"inverting {about['concept']['name']}", run=about, stage="inversion",
            updated=updated, accumulate=len(parts),
        )  # fmt: skip
    history = torch.tensor([value / len(vectors) for value in state.history["loss"]], dtype=torch.float64)
    return {"vectors": vectors.detach().clone(), "losses": last, "history": history}


def _objective(
    attack: Inverting, target: Target, latents: Float[Tensor, "n ch h w"], prompts: Sequence[str]
) -> Objective:
    with torch.no_grad():
        wanted = None if target.original is None else target.original.encode(prompts)
    through = attack.momentum == "differentiated"
    return Objective(target, latents, attack.loss, wanted, attack.guidance, attack.window, through)


def _cost(attack: Inverting, target: Target, objective: Objective, like: Query, rows: int) -> dict[str, int]:
    seen = attack.steps * rows * attack.batch
    cost = Cost(calls=seen * objective.calls, backward=seen, texts=seen)
    if not attack.folder:
        cost.generated(target.source, [like] * attack.images)
    return vars(cost)


__all__ = ["Inverted", "Inverting", "Words", "invert"]
