"""One page from the records: table 1, the search over prompts, inversion, pictures. No number is made here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from efface.digits import pipeline
from efface.digits.experiment import LIKE, MODELS, Experiment, fast
from efface.digits.plots import Series, alphas_plot, search_plot
from efface.digits.search import key, query_of
from efface.errors import BadInput
from efface.query import Query
from efface.util.files import writing

SHOWN = 4  # pictures in a cell
TONES = {"original": "a", "fine-tuned": "b", "prompt layers": "d", "task vector": "c"}


class Part(NamedTuple):
    """What the page shows of one experiment; empty where there is no record."""

    title: str
    dataset: str
    target: str
    steps: int
    alpha: float
    rows: Sequence[Mapping[str, Any]]
    worst: Mapping[str, Mapping[str, Any]]
    models: Sequence[str]
    sheet: Sequence[tuple[str, Sequence[str]]]
    search: str
    lines: Sequence[Mapping[str, Any]]
    alphas: str
    l_uncond: Mapping[str, Mapping[str, Any]]
    gradient: Sequence[Mapping[str, Any]]
    control: Sequence[Mapping[str, Any]]
    inversion: Sequence[Mapping[str, Any]]
    verdicts: Sequence[str]
    judge: Mapping[str, Any]


def write(folder: Path, path: Path, weights: Path | None = None) -> Path:
    """Write the page about every experiment with a table 1 in `folder`; raises `BadInput` when there is none."""
    found = sorted(folder.glob("*-table1.json"), key=lambda p: (not p.name.startswith("mnist"), p.name))
    if not found:
        raise BadInput(f"no records in {folder}: run `efface digits table1` first")
    names = [re.fullmatch(r"([a-z]+)-(.+)-table1\.json", p.name) for p in found]
    experiments = [Experiment(m[1], m[2], folder, weights or pipeline.WEIGHTS) for m in names if m]
    with fast():
        text = render([part(experiment) for experiment in experiments])
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(parts: Sequence[Part]) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("efface.digits", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval}
    return environment.get_template("page.html.j2").render(parts=parts, tones=TONES)


def part(experiment: Experiment) -> Part:
    """Gather the records of one experiment and draw its pictures."""
    table, search, inverted = (experiment.read(what) for what in ("table1", "search", "inversion"))
    alpha = table["alpha"]
    lines, gradient, control, inverse = (
        _ordered(found) for found in (*(search.get(kind, {}) for kind in ("grid", "gradient", "control")), inverted)
    )
    main = [line for line in lines if line["alpha"] in (0.0, alpha)]
    return Part(
        title=f"{'Digit' if experiment.dataset == 'mnist' else 'Fashion-MNIST class'} {experiment.target}",
        dataset=experiment.dataset,
        target=experiment.target,
        steps=table["steps"],
        alpha=alpha,
        rows=[{"name": name, **table["rows"][name]} for name in MODELS if name in table["rows"]],
        worst=worst(table, [*lines, *gradient, *inverse]),
        models=tuple(table["rows"]),
        sheet=_sheet(experiment, tuple(table["rows"]), alpha),
        search=search_plot(_series(main), _series_of_gradient(gradient, alpha)) if main else "",
        lines=[_shown(experiment, line) for line in lines],
        alphas=alphas_plot(table["sweep"], alpha, [*lines, *gradient]),
        l_uncond=search.get("l_uncond", {}),
        gradient=[_shown(experiment, line) for line in gradient],
        control=control,
        inversion=[_shown(experiment, line) for line in inverse],
        verdicts=verdicts(table, main, gradient, inverse),
        judge=table["judge"],
    )


def verdicts(
    table: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    gradient: Sequence[Mapping[str, Any]],
    inverted: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Say what the numbers say: the most unsafe prompt of any search, by model, and whether the intervals are apart."""
    best = worst(table, [*lines, *gradient, *inverted])
    said = [
        f"{name}: the worst prompt found gives the class in {percent(found)} ({interval(found)})"
        for name, found in best.items()
    ]
    if {"fine-tuned", "task vector"} <= set(best):
        tuned, vector = best["fine-tuned"], best["task vector"]
        if vector["ci95"][1] < tuned["ci95"][0]:
            said.append("the task vector's worst prompt is safer than the fine-tuned model's: the intervals are apart")
        elif tuned["ci95"][1] < vector["ci95"][0]:
            said.append("the fine-tuned model's worst prompt is safer than the task vector's: the intervals are apart")
        else:
            said.append("the worst prompts of the two edits cannot be told apart: their intervals overlap")
    return said


def worst(table: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return by model what its most unsafe prompt of any search gives; the task vector's is of the table's length."""
    by_model = {
        name: [x["best"] for x in found if x["model"] == name and x["alpha"] in (0.0, table["alpha"])]
        for name in MODELS
    }
    return {name: max(known, key=lambda x: x["share"]) for name, known in by_model.items() if known}


def percent(side: Mapping[str, Any]) -> str:
    """Write a share."""
    return f"{100 * side['share']:.1f} %"


def interval(side: Mapping[str, Any]) -> str:
    """Write its interval and n."""
    low, high = side["ci95"]
    return f"{100 * low:.1f}–{100 * high:.1f}, n = {side['n']:,}"


def _ordered(lines: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a record's lines by model, length and grid."""
    return sorted(lines.values(), key=lambda x: (MODELS.index(x["model"]), x["alpha"], x.get("levels", 0)))


def _series(lines: Sequence[Mapping[str, Any]]) -> list[Series]:
    return [
        Series(name, TONES[name], [(x["levels"], x["best"]["share"], *x["best"]["ci95"]) for x in own])
        for name in MODELS
        if (own := [line for line in lines if line["model"] == name])
    ]


def _series_of_gradient(lines: Sequence[Mapping[str, Any]], alpha: float) -> list[Series]:
    chosen = [x for x in lines if x["alpha"] in (0.0, alpha)]
    return [Series(x["model"], TONES[x["model"]], [(0, x["best"]["share"], *x["best"]["ci95"])]) for x in chosen]


def _sheet(experiment: Experiment, models: Sequence[str], alpha: float) -> list[tuple[str, list[str]]]:
    """Draw every class by every model with the same seeds, the target first (figure 7)."""
    names = (experiment.target, *experiment.others)
    queries = [_like(name, seed) for name in names for seed in range(SHOWN)]
    drawn = {name: experiment.model(name, alpha).generate(queries) for name in models}
    rows = []
    for i, name in enumerate(names):
        cells = [_strip(drawn[model][i * SHOWN : (i + 1) * SHOWN]) for model in models]
        rows.append((name, cells))
    return rows


def _shown(experiment: Experiment, line: Mapping[str, Any]) -> dict[str, Any]:
    """Add pictures of a record's best prompt."""
    query = query_of(line)
    images = experiment.model(line["model"], line["alpha"]).generate(
        [_like(query.prompt, seed) for seed in range(100, 100 + SHOWN)]
    )
    return {
        **line,
        "name": key(line["model"], line["alpha"]).replace("-vector-", " vector, α = "),
        "strip": _strip(images),
    }


def _like(prompt: str, seed: int) -> Query:
    return replace(LIKE, prompt=prompt, seed=seed)


def _strip(images: Any) -> str:
    """Put pictures side by side, enlarged twice without smoothing."""
    from efface.report.grid import data_uri, to_image

    wide = F.pad(
        images.repeat_interleave(2, 2).repeat_interleave(2, 3), (0, 4), value=0.5
    )  # grey parts them on white and on black
    return data_uri(to_image(torch.cat(list(wide), 2)[:, :, :-4]))
