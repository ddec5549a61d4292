"""Figure 3: the most unsafe prompt of every complexity, found by trying all of them; and by climbing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Finding, Target
from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid, points
from efface.attacks.search.contexts import chances
from efface.digits.experiment import LIKE, Clock, Experiment, fast
from efface.digits.net import WIDTH
from efface.digits.prompts import normalised, said
from efface.digits.table import share
from efface.query import Query
from efface.training.loop import checkpoints, generator

EPSILONS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
FRESH = 1000  # pictures, drawn anew, that a quoted probability rests on
REPLAYS = 64  # of the screening, to tell how often it would drop a prompt as good as the best
GRIDS = {
    2: Grid(levels=2, steps=(0, 0), draws=(8, 64), keep=(16, 8)),
    3: Grid(levels=3, steps=(3, 0, 0), draws=(1, 8, 64), keep=(512, 16, 8)),
}
LARGE = Grid(steps=(2, 3, 0, 0), draws=(1, 4, 16, 64), keep=(4096, 256, 16, 8))


def attack(levels: int) -> Grid:
    """Return the search that is used at a complexity: small grids are drawn more often."""
    return GRIDS.get(levels) or replace(LARGE, levels=levels)


def key(name: str, alpha: float) -> str:
    """Return what a model is called in records and file names."""
    return f"task-vector-{alpha:g}" if name == "task vector" else name


def grid_search(experiment: Experiment, name: str, alpha: float, levels: int, seed: int = 0) -> dict[str, Any]:
    """Search one grid, resumable, and measure the best prompt with fresh noise and the other judge."""
    target, grid = experiment.attacked(name, alpha), attack(levels)
    folder = experiment.path(f"{key(name, alpha)}-grid", ".run")
    with checkpoints(folder), fast():
        found = grid(target, experiment.concept, LIKE, seed)
        best = measured(experiment, target, found, seed)
        missed = miss(target, experiment, grid, found, seed)
    seconds = sum(rung["seconds"] for rung in found.about["rungs"])
    total = levels**WIDTH
    return {
        "model": name, "alpha": alpha, "levels": levels, "points": total,
        "prompts": int(found.about["rungs"][0]["contexts"]), "best": best, "missed": missed, **found.about,
        "images": found.cost["images"], "calls": found.cost["calls"], "seconds": round(seconds, 1),
    }  # fmt: skip


def gradient_search(experiment: Experiment, name: str, alpha: float, method: Gradient, seed: int = 0) -> dict[str, Any]:
    """Climb towards unsafe prompts and measure the best one like the grid's."""
    target, clock = experiment.attacked(name, alpha), Clock()
    with fast():
        found = method(target, experiment.concept, replace(LIKE, prompt=""), seed)
        took = clock()
        best = measured(experiment, target, found, seed)
    starts = [round(score, 4) for score in found.scores]
    return {"model": name, "alpha": alpha, "best": best, "starts": starts, **found.cost, **took}


def measured(experiment: Experiment, target: Target, found: Finding, seed: int) -> dict[str, Any]:
    """Draw the best prompt `FRESH` times anew; say what the judge that chose it sees, and the one that did not."""
    query = found.queries[0]
    assert query.context is not None
    vector = query.context.tokens[0, 0]
    seeds = torch.randint(2**62, (FRESH,), generator=generator(seed, "fresh")).tolist()
    images = target.edited.generate([replace(query, seed=s) for s in seeds], 256)
    index = experiment.judge.classes.index(experiment.target)
    second, first = ((j.objects(images).argmax(1) == index) for j in (experiment.second, experiment.judge))
    cosines = torch.nn.functional.cosine_similarity(
        vector[None], experiment.original.encode(experiment.judge.classes).tokens[:, 0]
    )
    nearest = int(cosines.argmax())
    return {
        "prompt": said(vector), **share(second), "first_judge": share(first), "score": found.scores[0],
        "nearest": experiment.judge.classes[nearest], "cosine": round(float(cosines[nearest]), 3),
        "cosine_to_target": round(float(cosines[index]), 3),
    }  # fmt: skip


def miss(target: Target, experiment: Experiment, grid: Grid, found: Finding, seed: int) -> dict[str, Any]:
    """Estimate how often screening would drop a prompt as good as those that were found.

    The finalists go through every rung but the last again, `REPLAYS` times with fresh noise; a rung drops one when its
    score is below that of the last prompt kept there. Finalists passed once, so this is slightly too low.
    """
    contexts = torch.cat([query.context.tokens for query in found.queries if query.context is not None])
    passed = torch.ones(len(contexts), dtype=torch.float64)
    for rung, made in enumerate(found.about["rungs"][:-1]):
        rng = generator(seed, "replay", rung)
        drawn = chances(target, experiment.concept, contexts, LIKE, REPLAYS, int(made["steps"]), rng)
        draws = int(made["draws"])
        rows = torch.randint(REPLAYS, (len(contexts), 2000, draws), generator=rng)  # means of `draws` out of the pool
        means = drawn[torch.arange(len(contexts))[:, None, None], rows].mean(-1)
        passed *= (means >= made["last_kept"]).double().mean(1)
    return {"best": round(float(1 - passed[0]), 5), "finalists": round(float(1 - passed.mean()), 5), "n": len(contexts)}


def control(experiment: Experiment, name: str, alpha: float, levels: int, count: int = 500, draws: int = 4) -> dict:
    """Draw random prompts of a grid in full: the marginal probability (equation 1), and what screening says of them."""
    target, rng = experiment.attacked(name, alpha), generator(levels, "control")
    rows = points(levels, WIDTH)
    rows = rows[torch.randperm(len(rows), generator=rng)[:count]]
    contexts = normalised(rows)[:, None]
    grid = attack(levels)
    with fast():
        full = chances(target, experiment.concept, contexts, LIKE, draws, LIKE.steps, rng)
        screen = chances(target, experiment.concept, contexts, LIKE, grid.draws[0], grid.steps[0], rng).mean(1)
    means = full.mean(1)
    return {
        "model": name, "alpha": alpha, "levels": levels, "prompts": count, "draws": draws,
        "marginal": share(full[:, 0] > 0.5), "largest_mean": round(float(means.max()), 4),
        "rank_correlation": round(_spearman(means, screen), 3),
    }  # fmt: skip


def _spearman(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    from scipy.stats import spearmanr

    value = float(spearmanr(a.numpy(), b.numpy())[0])  # pyright: ignore[reportArgumentType]
    return value if value == value else 0.0


def l_uncond(lines: Sequence[Mapping[str, Any]], epsilons: Sequence[float] = EPSILONS) -> dict[str, dict[str, Any]]:
    """Return for every ε the smallest complexity with a prompt above it (equation 3), from the lines of one model.

    level: by the estimate; None when no grid that was searched holds such a prompt. sure: the smallest one at which the
    whole interval is above ε.
    """
    ordered = sorted(lines, key=lambda line: line["levels"])
    found = {}
    for epsilon in epsilons:
        above = [line["levels"] for line in ordered if line["best"]["share"] > epsilon]
        sure = [line["levels"] for line in ordered if line["best"]["ci95"][0] > epsilon]
        found[f"{epsilon:g}"] = {"level": above[0] if above else None, "sure": sure[0] if sure else None}
    return found


def inversion(experiment: Experiment, name: str, alpha: float, seed: int = 0) -> dict[str, Any]:
    """Invert the erased class (figure 8): learn the prompt whose predicted noise fits pictures of it best."""
    method = Gradient.preset("inversion")
    return gradient_search(experiment, name, alpha, method, seed)


def query_of(line: Mapping[str, Any]) -> Query:
    """Return the query of a record's best prompt."""
    return replace(LIKE, prompt=line["best"]["prompt"])
