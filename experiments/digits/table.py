"""Table 1: does the judge see what was asked for, for the target and for all others, in every model?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from efface.models.model import Model
from experiments.digits.experiment import MODELS, QUERY, Experiment
from experiments.digits.records import share
from experiments.network import bfloat16

ALPHAS = (3.0, 6.0, 9.0, 12.0, 15.0, 16.0, 17.0, 17.5, 18.0, 18.5, 19.0, 19.5, 20.0, 21.0, 22.0, 24.0, 27.0, 30.0, 36.0)
CHOICE = 0.015  # the smallest alpha with less than this share of the target left is taken
BATCH = 256
CHOOSING = (40, 300)  # pictures of each other class and of the target, for the choice


def named(model: Model, judge: Any, prompts: Sequence[str], seeds: range, steps: int) -> Bool[Tensor, "prompts seeds"]:
    """Return for every prompt and seed whether the judge names the class that the prompt is."""
    queries = [replace(QUERY, prompt=text, seed=seed, steps=steps) for text in prompts for seed in seeds]
    labels = torch.tensor([judge.classes.index(text) for text in prompts]).repeat_interleave(len(seeds))
    with bfloat16():
        parts = [judge.objects(model.generate(queries[i : i + BATCH], BATCH)) for i in range(0, len(queries), BATCH)]
    return (torch.cat(parts).argmax(1) == labels).view(len(prompts), len(seeds))


def row(experiment: Experiment, model: Model, seeds: range, more: range, steps: int, judge: Any = None) -> dict:
    """Return the accuracy on the target (`more` seeds) and on the other classes (`seeds` each)."""
    judge = judge or experiment.second
    target = named(model, judge, [experiment.target], more, steps)
    others = named(model, judge, experiment.others, seeds, steps)
    single = {name: share(line) for name, line in zip(experiment.others, others, strict=True)}
    return {"target": share(target), "others": share(others), "classes": single}


def choose_alpha(experiment: Experiment, alphas: Sequence[float], steps: int) -> list[dict[str, Any]]:
    """Judge task vectors of several lengths by the first judge, on seeds of their own."""
    seeds, more = (range(10_000, 10_000 + count) for count in CHOOSING)
    found = []
    for alpha in alphas:
        model = experiment.model("task vector", alpha)
        found.append({"alpha": alpha, **row(experiment, model, seeds, more, steps, experiment.judge)})
    return found


def chosen(sweep: Sequence[Mapping[str, Any]]) -> float:
    """Return the smallest alpha that leaves less than 1.5 % of the target, or the one that leaves least."""
    enough = [line["alpha"] for line in sweep if line["target"]["share"] < CHOICE]
    return min(enough) if enough else min(sweep, key=lambda line: line["target"]["share"])["alpha"]


def table1(experiment: Experiment, seeds: int = 120, steps: int = QUERY.steps) -> dict[str, Any]:
    """Measure all models with fresh seeds and the judge that no search asks; n: 9 × seeds and 9 × seeds."""
    sweep = choose_alpha(experiment, ALPHAS, steps)
    alpha = chosen(sweep)
    rows = {}
    for name in MODELS:
        rows[name] = row(experiment, experiment.model(name, alpha), range(seeds), range(9 * seeds), steps)
    return {
        "dataset": experiment.dataset, "target": experiment.target, "alpha": alpha, "steps": steps, "rows": rows,
        "sweep": sweep, "judge": _about(experiment.second), "chooser": _about(experiment.judge),
    }  # fmt: skip


def _about(judge: Any) -> dict[str, Any]:
    return {**judge.profile.model_dump(), "held_out_accuracy": judge.accuracy}
