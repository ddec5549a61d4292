"""Search for tokens by gradients: each row of a batch is a query; rounds of steps, then a look at the images."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from efface import registry
from efface.attack import Attack, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.frames import Frame, check_fits, encode_frames
from efface.attacks.search.objective import CALLS, Objective
from efface.attacks.search.outcome import Found
from efface.attacks.search.relaxations import Relaxation
from efface.attacks.search.rows import Rows, drawn, later, plain
from efface.attacks.search.vocabulary import Asked, Vocabulary
from efface.concept import Concept
from efface.edits.guard import unguided
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.checkpoints import State, current
from efface.training.loop import descend, generator, optimizer
from efface.util.progress import progress
from efface.util.ranges import DECAY, GUIDANCE, RATE, ROWS, Ranges

Rate = Callable[[Float[Tensor, "r 3 h w"], list[int]], Float[Tensor, " r"]]  # (images, rows) -> the larger the better


@dataclass(frozen=True)
class TokenSearch(Attack):
    """Base class of attacks that search for tokens by gradients through the denoiser.

    Args:
        tokens: free tokens of a prompt
        lr: learning rate
        weight_decay: of the optimiser
        stop: end a query's search at the first image in which the asked judge sees the concept
        guidance: of both sides of a score loss, against a model with guards only; without guards it is not guided
        earlier: predictions at earlier timesteps, at most, through which a stateful guard (SLD) is run before each loss
        fragments: use tokens that occur only inside words, as the papers do; what is found may then not be typable
        forbid_name: do not use the tokens of the concept's name; the papers do not forbid them
        at_once: queries in memory at once
    """

    tokens: int = 16
    lr: float = 0.1
    weight_decay: float = 0.1
    stop: bool = True
    guidance: float = 7.5
    earlier: int = 34  # as in Concept Inversion's code, which learns from the last of 35
    fragments: bool = False
    forbid_name: bool = False
    at_once: int = 16

    NEEDS: ClassVar[tuple[Need, ...]] = ("original", "judge", "text encoder")
    RANGES: ClassVar[Ranges] = {
        "tokens": "[1, 75]", "lr": RATE, "weight_decay": DECAY, "guidance": GUIDANCE, "earlier": "[0, 34]",
        "at_once": ROWS,
    }  # fmt: skip

    @abstractmethod
    def frame(self, concept: Concept, ids: Sequence[int]) -> Frame:
        """Return the prompt that is searched, from the token ids of a given one."""

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that the target has what the attack needs, and that every prompt has room for the free tokens."""
        super().check(target, concept, queries)
        for query in plain(concept, queries):
            check_fits(target.edited, self.frame(concept, ids_of(target.edited, query.prompt)))

    def vocabulary(self, target: Target, concept: Concept) -> Vocabulary:
        """Return the tokens that the search may use."""
        return Vocabulary.of(target.edited, self.fragments, (concept.name,) if self.forbid_name else ())


@dataclass(frozen=True)
class Plan:
    """Hold how long a search lasts: rounds of steps, each at one timestep (None: a random one at every step)."""

    steps: tuple[int, ...]
    times: tuple[int | None, ...]
    optimizer: str = "adamw"


@dataclass(eq=False)
class Search:
    """Run one batch of rows.

    rate: what tells the better of two images of one row. stage: name of its checkpoints.
    """

    attack: TokenSearch
    target: Target
    concept: Concept
    rows: Rows
    vocabulary: Vocabulary
    relaxation: Relaxation
    objective: Objective
    plan: Plan
    rate: Rate
    seed: int
    stage: str
    cost: Cost = field(default_factory=Cost)

    def __call__(self, done: dict[int, Found] | None = None) -> list[Found]:
        """Return the best of every row; done: rows that need no search. Resumes from checkpoints."""
        best: dict[int, Found] = dict(done or {})
        active = [i for i in range(len(self.rows.queries)) if i not in best]
        adam = optimizer(self.plan.optimizer, [self.relaxation.values], self.attack.lr, self.attack.weight_decay)
        state, steps = State({"values": self.relaxation.values}, {"main": adam}), 0
        for number in progress(
            range(len(self.plan.steps)), f"{registry.name_of(type(self.attack))} {self.concept.name}"
        ):
            if not active:
                break
            steps += self.plan.steps[number]
            self._descend(state, steps, active, number)
            looked = self._look(number, active)
            for row, found in zip(active, looked, strict=True):
                won = row not in best or found.score > best[row].score or (self.attack.stop and found.success)
                best[row] = found if won else best[row]
                best[row].steps = steps
            active = [i for i in active if not (self.attack.stop and best[i].success)]
        return [best[i] for i in range(len(self.rows.queries))]

    @property
    def about(self) -> dict[str, Any]:
        """Return all that the search depends on, for its checkpoints."""
        return {
            "attack": registry.to_json(self.attack), "concept": self.concept.to_json(), "seed": self.seed,
            **self.target.describe(), "queries": [query.key for query in self.rows.queries],
        }  # fmt: skip

    def _descend(self, state: State, until: int, active: list[int], number: int) -> None:
        """Take the steps of a round, for the active rows only."""
        parts = [active[i : i + self.attack.at_once] for i in range(0, len(active), self.attack.at_once)]
        time = self.plan.times[number]

        def loss(draws: int) -> Tensor:
            step, number = divmod(draws, len(parts))
            return self.losses(parts[number], step, time).sum() * len(parts)  # descend takes the mean over parts

        with torch.inference_mode(False), torch.enable_grad():
            descend(
                loss, state, until, label=f"tokens for {self.concept.name}", run=self.about, stage=self.stage,
                updated=self.relaxation.project, accumulate=len(parts),
            )  # fmt: skip
        count = len(active) * self.plan.steps[number]
        self.cost.backward += count
        self.cost.texts += count
        self.cost.calls += count * self.objective.calls_in(1 + min(self.attack.earlier, self._before(time)))

    def losses(self, rows: Sequence[int], step: int, time: int | None) -> Float[Tensor, " r"]:
        """Return the loss of some rows in one step; gradients reach the variables."""
        chosen = self.rows.only(rows)
        rngs = [generator(self.seed, "row", query.prompt, query.seed, step) for query in chosen.queries]
        vectors = self.relaxation.vectors(rows, rngs)
        context = encode_frames(self.target.edited, chosen.frames, self.vocabulary.every, vectors)
        at = drawn(self.target.edited, chosen.clean, rngs, self._stateful, time)
        at = replace(at, before=at.before[:, len(at.before[0]) - min(self.attack.earlier, len(at.before[0])) :])
        return replace(self.objective, wanted=chosen.wanted)(context, at)

    @property
    def _stateful(self) -> bool:
        return self.target.edited.hooks().guide is not unguided

    def _before(self, time: int | None) -> int:
        """Return how many earlier timesteps there are to draw."""
        return CALLS - 1 if time is None else min(CALLS - 1, later(self.target.edited, time))

    @torch.no_grad()
    def _look(self, number: int, active: list[int]) -> list[Found]:
        """Generate the image of every active row's tokens, once."""
        stored = current()

        def make() -> dict[str, Tensor]:
            tokens = self.relaxation.tokens()[active]
            asked = [self._asked(row, one) for row, one in zip(active, tokens, strict=True)]
            seen, scores = self.judged([one.query for one in asked], active)
            return {"tokens": tokens.clone(), "success": seen, "scores": scores}

        about = self.about | {"round": number, "rows": active}
        found = stored.once(f"{self.stage}-{number}", about, make) if stored else make()
        columns = (found["tokens"], found["success"].tolist(), found["scores"].tolist())
        looked = [
            Found(self._asked(row, tokens), self._ids(row, tokens), bool(success), score, number)
            for row, tokens, success, score in zip(active, *columns, strict=True)
        ]
        self.cost.generated(self.target.edited, [one.asked.query for one in looked])
        return looked

    def judged(self, queries: Sequence[Query], rows: list[int]) -> tuple[Bool[Tensor, " r"], Float[Tensor, " r"]]:
        """Return whether the attacked model's images of queries show the concept, and their rates."""
        images = self.target.edited.generate(queries)
        success, scores = self.target.success(images, self.concept), self.rate(images, rows)
        return torch.tensor(success.tolist()), torch.tensor(scores.tolist())

    def _ids(self, row: int, tokens: Int[Tensor, " k"]) -> tuple[int, ...]:
        return self.rows.frames[row].filled(self.vocabulary.ids[tokens.cpu()].tolist())

    def _asked(self, row: int, tokens: Int[Tensor, " k"]) -> Asked:
        return self.vocabulary.query(self.rows.queries[row], self._ids(row, tokens))


__all__ = ["Plan", "Search", "TokenSearch"]
