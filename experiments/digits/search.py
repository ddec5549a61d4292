"""Figure 3: the most unsafe prompt of every complexity, found by trying all of them; and by gradient ascent."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from efface.attack import Finding, Target
from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid
from efface.attacks.search.contexts import probabilities
from efface.attacks.search.lattice import points
from efface.digits.net import WIDTH
from efface.digits.prompts import as_prompt, normalised
from efface.evaluation.summary import Share
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator
from experiments.digits.experiment import QUERY, Clock, Experiment
from experiments.digits.records import Ascent, Best, Control, GridSearch, Missed
from experiments.network import bfloat16

EPSILONS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
FRESH = 1000  # images from fresh seeds, from which a quoted probability is counted
GRIDS = {
    2: Grid(values=2, steps=(0, 0), images=(8, 64), survivors=(16, 8), replays=64),
    3: Grid(values=3, steps=(3, 0, 0), images=(1, 8, 64), survivors=(512, 16, 8), replays=64),
}
LARGE = Grid(steps=(2, 3, 0, 0), images=(1, 4, 16, 64), survivors=(4096, 256, 16, 8), more=2, replays=64)


def attack(levels: int) -> Grid:
    """Return the search that is used at a complexity: small grids get more images a prompt."""
    return GRIDS.get(levels) or replace(LARGE, values=levels)


def key(name: str, alpha: float) -> str:
    """Return what a model is called in records and file names."""
    return f"task-vector-{alpha:g}" if name == "task vector" else name


def grid_search(experiment: Experiment, name: str, alpha: float, levels: int, seed: int = 0) -> GridSearch:
    """Search one grid, resumable, and measure the best prompt with fresh noise and the other judge."""
    target, grid = experiment.attacked(name, alpha), attack(levels)
    folder = experiment.records.path(f"{key(name, alpha)}-grid", ".run")
    with checkpoints(folder), bfloat16():
        found = grid(target, experiment.concept, QUERY, seed)
        best = measured(experiment, target, found, seed)
    each = found.about["missed"]["each"]
    missed = Missed(
        best=round(each[0], 5), finalists=round(sum(each) / len(each), 5), n=len(each),
        best_five=round(found.about["missed"]["best_five"], 5),
    )  # fmt: skip
    rounds = found.about["rounds"]
    seconds = sum(made["seconds"] for made in rounds)
    return GridSearch(
        model=name, alpha=alpha, levels=levels, points=levels**WIDTH, prompts=int(rounds[0]["contexts"]), best=best,
        missed=missed, rounds=tuple(rounds), images=int(found.cost["images"]), calls=int(found.cost["calls"]),
        seconds=round(seconds, 1),
    )  # fmt: skip


def gradient_search(experiment: Experiment, name: str, alpha: float, method: Gradient, seed: int = 0) -> Ascent:
    """Ascend the gradient to unsafe prompts and measure the best one like the grid's."""
    target, clock = experiment.attacked(name, alpha), Clock()
    with bfloat16():
        found = method(target, experiment.concept, replace(QUERY, prompt=""), seed)
        took = clock()
        best = measured(experiment, target, found, seed)
    starts, cost = tuple(round(score, 4) for score in found.scores), {k: int(v) for k, v in found.cost.items()}
    return Ascent(model=name, alpha=alpha, best=best, starts=starts, **cost, **took)  # pyright: ignore[reportArgumentType]


def measured(experiment: Experiment, target: Target, found: Finding, seed: int) -> Best:
    """Generate `FRESH` images of the best prompt from new seeds; return the class's share by either judge."""
    query = found.queries[0]
    assert query.context is not None
    vector = query.context.tokens[0, 0]
    seeds = torch.randint(2**62, (FRESH,), generator=generator(seed, "fresh")).tolist()
    images = target.edited.generate([replace(query, seed=s) for s in seeds], 256)
    index = experiment.judge.classes.index(experiment.target)
    second, first = ((j.objects(images).argmax(1) == index) for j in (experiment.second, experiment.judge))
    cosines = cosine_similarity(vector[None], experiment.original.encode(experiment.judge.classes).tokens[:, 0])
    moved = cosine_similarity(vector, target.edited.encode([experiment.target]).tokens[0, 0], dim=0)
    nearest = int(cosines.argmax())
    return Best(
        prompt=as_prompt(vector), second=share(second), first=share(first), score=found.scores[0],
        nearest=experiment.judge.classes[nearest], cosine=round(float(cosines[nearest]), 3),
        cosine_to_target=round(float(cosines[index]), 3), cosine_to_moved=round(float(moved), 3),
    )  # fmt: skip


def share(right: Bool[Tensor, " n"]) -> Share:
    """Return how many are right."""
    return Share(hits=int(right.sum()), n=right.numel())


def control(experiment: Experiment, name: str, alpha: float, levels: int, count: int = 500, draws: int = 4) -> Control:
    """Sample random prompts of a grid in full: marginal probability (equation 1), screening's rank correlation."""
    target, rng = experiment.attacked(name, alpha), generator(levels, "control")
    rows = points(levels, WIDTH)
    rows = rows[torch.randperm(len(rows), generator=rng)[:count]]
    contexts = normalised(rows)[:, None]
    grid = attack(levels)
    with bfloat16():
        full = probabilities(target, experiment.concept, contexts, QUERY, draws, QUERY.steps, rng)
        screen = probabilities(target, experiment.concept, contexts, QUERY, grid.images[0], grid.steps[0], rng).mean(1)
    means = full.mean(1)
    return Control(
        model=name, alpha=alpha, levels=levels, prompts=count, draws=draws, marginal=share(full[:, 0] > 0.5),
        largest_mean=round(float(means.max()), 4), rank_correlation=round(_spearman(means, screen), 3),
    )  # fmt: skip


def _spearman(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    from scipy.stats import spearmanr

    value = float(spearmanr(a.numpy(), b.numpy())[0])  # pyright: ignore[reportArgumentType]
    return value if value == value else 0.0


class Smallest(NamedTuple):
    """The smallest complexity with a prompt above some ε: by the estimate, and by the whole interval; None without."""

    level: int | None
    sure: int | None


def l_uncond(lines: Sequence[GridSearch], epsilons: Sequence[float] = EPSILONS) -> dict[str, Smallest]:
    """Return for every ε the smallest complexity with a prompt above it (equation 3), from the grids of one model."""
    found = {}
    for epsilon in epsilons:
        above = [line.levels for line in lines if line.best.second.value > epsilon]
        sure = [line.levels for line in lines if line.best.second.interval.low > epsilon]
        found[f"{epsilon:g}"] = Smallest(min(above, default=None), min(sure, default=None))
    return found


def inversion(experiment: Experiment, name: str, alpha: float, seed: int = 0) -> Ascent:
    """Invert the erased class (figure 8): learn the prompt whose predicted noise fits pictures of it best."""
    method = Gradient.preset("inversion")
    return gradient_search(experiment, name, alpha, method, seed)
