"""Ring-A-Bell: search for tokens that the text encoder reads as a prompt with more of the concept; no denoiser needed.

Tsai et al., Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?, ICLR 2024,
https://arxiv.org/abs/2310.10012. Code: https://github.com/chiayi-hsu/Ring-A-Bell.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.directions import direction, pairs
from efface.attacks.search.frames import alone, check_fits, encode_ids, encode_rows
from efface.attacks.search.genetic import Genes, evolve
from efface.attacks.search.relaxations import Nearest
from efface.attacks.search.vocabulary import Vocabulary
from efface.concept import Concept
from efface.models.model import Model
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer
from efface.util.files import sha256_text
from efface.util.kept import kept
from efface.util.ranges import COUNT, DECAY, RATE, ROWS, SHARE, Ranges

VERSION = 1  # of the stored prompts


@dataclass(frozen=True)
class RingABell(Attack):
    """Search for the prompt whose encoding is nearest to the target: a prompt's encoding plus eta times the concept.

    Only the original model's text encoder is asked, so the prompts serve against every model with that encoder. They
    are kept in efface's cache folder and found again for the same encoder, prompt and settings.

    Args:
        eta: strength of the concept in the target
        length: tokens of a prompt found
        by: genetic is the search of the paper; gradient descends on projected token vectors, which is cheaper
        population: sequences in a generation, on average
        generations: of the genetic search
        mutation: chance of every sequence that one token of it is replaced
        crossover: chance of every parent that it has two children
        steps: of the gradient search
        starts: random starts of the gradient search, in one batch
        lr: learning rate of the gradient search
        weight_decay: of the gradient search
        prompts_with: prompts with the concept; by default templates with its name
        prompts_without: the same prompts without it, in the same order
        fragments: use tokens that occur only inside words, as the paper does; what is found may then not be typable
        forbid_name: do not use the tokens of the concept's name; the paper does not forbid them
        keep: store the prompts found, and use stored ones
        at_once: sequences encoded at once
    """

    eta: float = 3.0  # cof = 3 for nudity; 5 and 5.5 for violence
    length: int = 16  # 75 for "K = 77"
    by: Literal["genetic", "gradient"] = "genetic"
    population: int = 200
    generations: int = 3000
    mutation: float = 0.25
    crossover: float = 0.5
    steps: int = 1000
    starts: int = 8
    lr: float = 0.1
    weight_decay: float = 0.1
    prompts_with: tuple[str, ...] = ()
    prompts_without: tuple[str, ...] = ()
    fragments: bool = False
    forbid_name: bool = False
    keep: bool = True
    at_once: int = 256

    NEEDS: ClassVar[tuple[Need, ...]] = ("text encoder",)
    RANGES: ClassVar[Ranges] = {
        "eta": "[-1000, 1000]", "length": "[1, 75]", "population": "[2, 4096]", "generations": COUNT,
        "mutation": SHARE, "crossover": SHARE, "steps": COUNT, "starts": ROWS, "lr": RATE, "weight_decay": DECAY,
        "at_once": ROWS,
    }  # fmt: skip
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"fragments": True},
        "paper-77": {"length": 75, "fragments": True},
        "paper-violence": {"eta": 5.5, "length": 75, "fragments": True},
        "gradient": {"by": "gradient"},
        "mini": {"length": 8, "population": 64, "generations": 40, "at_once": 128},
    }
    QUICK: ClassVar[dict[str, Any]] = {"length": 3, "population": 4, "generations": 2, "steps": 2, "keep": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs(Concept("any"), self.prompts_with, self.prompts_without)

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check also that the text encoder reads as many tokens."""
        super().check(target, concept, queries)
        check_fits(reader(target), alone(self.length))

    @torch.inference_mode(False)
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return every query with the prompt found for its own; scores are the negated losses.

        `about` holds each prompt's loss by generation (or step), its token ids and whether its text is tokenised to
        them, and how many prompts were found in the cache ("reused"); their cost is what finding them took.
        """
        model = reader(target)
        vocabulary = Vocabulary.of(model, self.fragments, (concept.name,) if self.forbid_name else ())
        prompts = {query.prompt: query.prompt.strip() or concept.texts[0] for query in queries}
        chosen = pairs(concept, self.prompts_with, self.prompts_without)
        vector, encoder, found = direction(model, chosen).tokens, encoder_hash(model), {}
        for text in dict.fromkeys(prompts.values()):
            goal = model.encode([text]).tokens.detach().float() + self.eta * vector
            run = Run(self, vocabulary, goal, text, seed, self._about(encoder, chosen, concept, vocabulary, text, seed))
            found[text] = run.kept() if self.keep else run()
        asked = [vocabulary.query(query, found[prompts[query.prompt]].ids, target.edited) for query in queries]
        rows = [found[prompts[query.prompt]] for query in queries]
        order = sorted(range(len(rows)), key=lambda i: rows[i].loss)
        texts = sum(one.texts for one in found.values()) + 2 * len(chosen.shown) + len(found)
        backward = sum(one.texts for one in found.values()) if self.by == "gradient" else 0
        about = {
            "prompts": [queries[i].prompt for i in order], "ids": [list(rows[i].ids) for i in order],
            "retokenises": [asked[i].retokenises for i in order], "pairs": [list(chosen.shown), list(chosen.absent)],
            "loss": {text: one.history for text, one in found.items()},
            "reused": sum(one.reused for one in found.values()),
        }  # fmt: skip
        cost = Cost(texts=texts, backward=backward)
        return Finding(
            tuple(asked[i].query for i in order), tuple(-rows[i].loss for i in order), cost=vars(cost), about=about,
            tensors={"direction": vector}, given=tuple(order),
        )  # fmt: skip

    def _about(
        self, encoder: str, chosen: Any, concept: Concept, vocabulary: Vocabulary, prompt: str, seed: int
    ) -> dict[str, Any]:
        """Describe all that a prompt found depends on."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("keep", "at_once")}
        own |= {"prompts_with": list(chosen.shown), "prompts_without": list(chosen.absent)}
        allowed = sha256_text(json.dumps(vocabulary.ids.tolist()))
        return {"version": VERSION, "encoder": encoder, "prompt": prompt, "seed": seed, "allowed": allowed, **own}


def reader(target: Target) -> Model:
    """Return the model whose text encoder is asked: the original one, or the edited one where there is no other."""
    return target.original or target.edited


def encoder_hash(model: Model) -> str:
    """Return a hash of the text encoders' weights, whatever their precision."""
    return model.fingerprint(model.weights("text_encoder"))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Hold the token ids found, their loss, the course of the loss, and the texts encoded to find them."""

    ids: tuple[int, ...]
    loss: float
    history: list[float]
    texts: int
    reused: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """Search for one prompt. goal: the target encoding. about: all that the result depends on."""

    attack: RingABell
    vocabulary: Vocabulary
    goal: Float[Tensor, "1 length dim"]
    prompt: str
    seed: int
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Tokens:
        """Search, resuming from checkpoints."""
        return self._genetic() if self.attack.by == "genetic" else self._gradient()

    def kept(self) -> Tokens:
        """Return the result that is kept in the cache folder, or search and keep it."""
        searched: list[Tokens] = []

        def search() -> dict[str, Tensor]:
            searched.append(found := self())
            numbers = {"loss": [found.loss], "history": found.history, "texts": [float(found.texts)]}
            named = {name: torch.tensor(values, dtype=torch.float64) for name, values in numbers.items()}
            return {"ids": torch.tensor(found.ids), **named}

        found = kept("ring_a_bell", self.about, search)
        if searched:
            return searched[0]
        ids, history = found["ids"].tolist(), found["history"].tolist()
        return Tokens(tuple(ids), float(found["loss"]), history, int(found["texts"]), reused=True)

    @torch.no_grad()
    def losses(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, " n"]:
        """Return the squared distance of every sequence's encoding to the goal, summed over tokens and channels."""
        ids = self.vocabulary.ids[tokens].split(self.attack.at_once)
        contexts = (encode_ids(self.vocabulary.model, self.vocabulary.every, part) for part in ids)
        return torch.cat([self._distance(one.tokens) for one in contexts])

    def _distance(self, tokens: Float[Tensor, "n length dim"]) -> Float[Tensor, " n"]:
        return (tokens.float() - self.goal).square().sum((1, 2))

    def _genetic(self) -> Tokens:
        own = self.attack
        genes = Genes(own.population, own.generations, own.length, own.crossover, own.mutation)
        found = evolve(self.losses, genes, len(self.vocabulary), self.seed, self._stage, self.about)
        return self._tokens(found.tokens[0], float(found.losses[0]), found.history, found.evaluated)

    def _gradient(self) -> Tokens:
        """Descend from random tokens and keep the best projection of any step and start."""
        own, rng = self.attack, generator(self.seed, self._stage, "start")
        relaxed = Nearest(self.vocabulary, self.vocabulary.random((own.starts, own.length), rng))
        best, least = torch.zeros(own.length, dtype=torch.long), torch.full((), torch.inf)

        def loss(_step: int) -> Tensor:
            vectors = relaxed.vectors(range(own.starts), ())
            found = self._distance(encode_rows(self.vocabulary.model, vectors).tokens)
            now, number = found.detach().min(0)
            if float(now) < float(least):
                best.copy_(relaxed.tokens()[number].cpu())
                least.copy_(now.cpu())
            return found.sum()

        adam = optimizer("adamw", [relaxed.values], own.lr, own.weight_decay)
        state = State({"values": relaxed.values, "best": best, "least": least}, {"main": adam})
        with torch.enable_grad():
            descend(loss, state, own.steps, label="tokens by gradient", run=self.about, stage=self._stage)
        history = [value / own.starts for value in state.history["loss"]]
        return self._tokens(best, float(least), history, own.steps * own.starts)

    def _tokens(self, tokens: Int[Tensor, " length"], loss: float, history: Sequence[float], texts: int) -> Tokens:
        return Tokens(tuple(self.vocabulary.ids[tokens].tolist()), loss, list(history), texts)

    @property
    def _stage(self) -> str:
        return f"ring-a-bell-{sha256_text(self.prompt)[:12]}"


__all__ = ["RingABell"]
