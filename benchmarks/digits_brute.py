"""Brute force over one grid of the digits: what halving and the climb find, against every prompt drawn many times.

python -m benchmarks.digits_brute --folder digits --model fine-tuned --levels 3    # adds to records/digits_brute.json

Every prompt of the grid gets `--draws` images in full; the 32 that come out best are drawn 1,000 times more, and are
ranked by those. Then the searches run with `--seeds` seeds: how many of the best five prompts are among halving's
finalists, what halving says of missing them, and what its best prompt and the climb's give. Goes on where it was
stopped.
"""

import argparse
from pathlib import Path

import torch

from efface.attack import Target
from efface.attacks.grid import Grid
from efface.attacks.search.contexts import probabilities
from efface.digits.net import WIDTH
from efface.digits.prompts import as_prompt, prompt_vector
from efface.edits.provenance import git, versions
from efface.evaluation.summary import Share
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator
from efface.util.values import Value
from experiments.digits.experiment import QUERY, Experiment
from experiments.digits.records import Best, read, write
from experiments.digits.runs import ASCENT
from experiments.digits.search import attack, key, measured, share
from experiments.network import bfloat16

RECORD = Path(__file__).parent / "records" / "digits_brute.json"
AGAIN, FRESH = 32, 1000  # prompts that are drawn again, and images of each


class Halved(Value):
    """One seed of successive halving: how many of the best five it kept, what it said of missing them, its best."""

    seed: int
    kept: int
    missed_best: float
    missed_all: float
    best: Best


class Climbed(Value):
    """One seed of the climb."""

    seed: int
    best: Best


class Brute(Value):
    """One model and one grid; five: the best prompts by new images, with the share that the first judge saw."""

    dataset: str
    target: str
    training_seed: int
    model: str
    alpha: float
    levels: int
    draws: int
    five: tuple[tuple[str, Share], ...]
    halving: tuple[Halved, ...]
    climb: tuple[Climbed, ...]


class Brutes(Value):
    """The record."""

    lines: tuple[Brute, ...] = ()
    versions: dict[str, str]
    git: str


def best_five(experiment: Experiment, target: Target, levels: int, draws: int) -> list[tuple[str, Share]]:
    """Return the five best prompts of a grid, tried in full."""
    every = Grid(values=levels, steps=(0,), images=(draws,), survivors=(AGAIN,), more=1, replays=0, chunk=512)
    found = every(target, experiment.concept, QUERY)
    contexts = torch.cat([query.context.tokens for query in found.queries if query.context is not None])
    rng = generator(levels, "again")
    seen = probabilities(target, experiment.concept, contexts, QUERY, FRESH, QUERY.steps, rng) > 0.5
    order = seen.float().mean(1).argsort(descending=True, stable=True)[:5]
    return [(as_prompt(contexts[i, 0]), share(seen[i])) for i in order.tolist()]


def halved(experiment: Experiment, target: Target, levels: int, five: torch.Tensor, seed: int) -> Halved:
    """Search the grid by halving, and count which of the best five come out."""
    found = attack(levels)(target, experiment.concept, QUERY, seed)
    contexts = torch.cat([query.context.tokens[:, 0] for query in found.queries if query.context is not None])
    kept = int(((five @ contexts.T) > 1 - 1e-5).any(1).sum())
    missed, best = found.about["missed"], measured(experiment, target, found, seed)
    return Halved(seed=seed, kept=kept, missed_best=missed["each"][0], missed_all=missed["best_five"], best=best)


def climbed(experiment: Experiment, target: Target, seed: int) -> Climbed:
    """Climb once."""
    found = ASCENT(target, experiment.concept, QUERY, seed)
    return Climbed(seed=seed, best=measured(experiment, target, found, seed))


def main() -> None:
    """Measure one model and add it to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("digits"))
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--target", default="0")
    parser.add_argument("--training-seed", type=int, default=0)
    parser.add_argument("--model", default="fine-tuned")
    parser.add_argument("--alpha", type=float, default=0.0)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    experiment = Experiment(options.dataset, options.target, options.folder, seed=options.training_seed)
    target = experiment.attacked(options.model, options.alpha)
    name = f"{key(options.model, options.alpha)}-brute-L{options.levels}"
    with checkpoints(experiment.records.path(name, ".run")), bfloat16():
        five = best_five(experiment, target, options.levels, options.draws)
    vectors = torch.stack([prompt_vector(prompt) for prompt, _ in five])
    assert vectors.shape == (len(five), WIDTH)
    with bfloat16():
        halving = tuple(halved(experiment, target, options.levels, vectors, seed) for seed in range(options.seeds))
        climb = tuple(climbed(experiment, target, seed) for seed in range(options.seeds))
    line = Brute(
        dataset=options.dataset, target=options.target, training_seed=options.training_seed, model=options.model,
        alpha=options.alpha, levels=options.levels, draws=options.draws, five=tuple(five), halving=halving,
        climb=climb,
    )  # fmt: skip
    known = read(Brutes, options.out).lines if options.out.is_file() else ()
    write(Brutes(lines=(*known, line), versions=versions(), git=git()), options.out)
    for prompt, seen in five:
        print(f"{seen.value:6.1%}  {prompt}")
    for one in halving:
        print(f"halving, seed {one.seed}: kept {one.kept} of 5, best {one.best.second.value:.1%}; all missed: "
              f"{one.missed_all:.2g}")  # fmt: skip
    for one in climb:
        print(f"climb, seed {one.seed}: {one.best.second.value:.1%}")


if __name__ == "__main__":
    main()
