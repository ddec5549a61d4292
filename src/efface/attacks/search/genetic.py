"""The genetic search of Ring-A-Bell's code over token sequences, a whole population in one batch.

https://github.com/chiayi-hsu/Ring-A-Bell, InversePrompt.ipynb. In each generation the best half stays; every one of
them is kept and, with a chance, also crossed with another at one point, both ways; then any of all these, the parents
among them, may have one token replaced. So the best sequence itself may be lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.training.checkpoints import State, current
from efface.training.loop import generator
from efface.util.progress import progress

Losses = Callable[[Int[Tensor, "n length"]], Float[Tensor, " n"]]
SAVED = 50  # generations between two checkpoints


@dataclass(frozen=True)
class Genes:
    """Hold the settings. crossover, mutation: chances of each sequence."""

    population: int
    generations: int
    length: int
    crossover: float
    mutation: float


@dataclass(frozen=True, eq=False)
class Evolved:
    """Hold the best half of the last population, best first, and the best loss of every generation.

    evaluated: sequences whose loss was computed: not that of a parent that stayed as it was, and of equal ones once.
    """

    tokens: Int[Tensor, "half length"]
    losses: Float[Tensor, " half"]
    history: list[float]
    evaluated: int


def crossed(parents: Int[Tensor, "p length"], chance: float, rng: torch.Generator) -> Int[Tensor, "n length"]:
    """Return the parents, followed by two children of each that is crossed with another: its head and the other's tail,
    and the reverse. The head may be empty, the tail is not."""
    count, length = parents.shape
    chosen = (torch.rand(count, generator=rng) < chance).nonzero()[:, 0]
    mates = torch.randint(count, (len(chosen),), generator=rng)
    points = torch.randint(length, (len(chosen), 1), generator=rng)
    head = torch.arange(length)[None] < points
    own, other = parents[chosen], parents[mates]
    return torch.cat([parents, torch.where(head, own, other), torch.where(head, other, own)])


def mutated(tokens: Int[Tensor, "n length"], chance: float, size: int, rng: torch.Generator) -> Int[Tensor, "n length"]:
    """Return the sequences, some of them with one token drawn anew from `size`."""
    count, length = tokens.shape
    chosen = (torch.rand(count, generator=rng) < chance).nonzero()[:, 0]
    found = tokens.clone()
    places = torch.randint(length, (len(chosen),), generator=rng)
    found[chosen, places] = torch.randint(size, (len(chosen),), generator=rng)
    return found


def _losses(
    losses: Losses, population: Int[Tensor, "n length"], known: Int[Tensor, "p length"], own: Float[Tensor, " half"]
) -> tuple[Float[Tensor, " n"], int]:
    """Return every sequence's loss, and how many had to be computed; those of `known` sequences are `own`."""
    found = dict(zip(map(tuple, known.tolist()), own.tolist(), strict=False))
    rows = [tuple(row) for row in population.tolist()]
    new = [row for row in dict.fromkeys(rows) if row not in found]
    if new:
        found |= dict(zip(new, losses(torch.tensor(new)).tolist(), strict=True))
    return torch.tensor([found[row] for row in rows]), len(new)


def evolve(losses: Losses, genes: Genes, size: int, seed: int, stage: str, about: dict[str, Any]) -> Evolved:
    """Search for the token sequences of the lowest loss; tokens are numbers below `size`. Resumes from checkpoints.

    about: describes the run for its checkpoints.
    """
    half, store = max(1, genes.population // 2), current()
    start = torch.randint(size, (genes.population, genes.length), generator=generator(seed, stage, "start"))
    best = torch.zeros(half, genes.length, dtype=torch.long)
    kept = torch.zeros(half)
    state = State({"tokens": best, "losses": kept}, history={"loss": [], "evaluated": []})
    if store:
        store.load(stage, about, state)
    for number in progress(range(state.step, genes.generations), "generations of prompts"):
        population = start
        if number:
            rng = generator(seed, stage, number)
            population = mutated(crossed(best, genes.crossover, rng), genes.mutation, size, rng)
        found, computed = _losses(losses, population, best[: half * bool(number)], kept)
        order = found.argsort(stable=True)[:half]
        best.copy_(population[order])
        kept.copy_(found[order])
        state.step = number + 1
        state.history["loss"].append(float(kept[0]))
        state.history["evaluated"].append(float(computed))
        if store and (state.step % SAVED == 0 or state.step == genes.generations):
            store.save(stage, about, state)
    return Evolved(best, kept, state.history["loss"], int(sum(state.history["evaluated"])))


__all__ = ["Evolved", "Genes", "crossed", "evolve", "mutated"]
