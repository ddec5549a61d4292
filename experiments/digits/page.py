"""One page from the records: table 1, the search over prompts, inversion, pictures. No number is made here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from efface.digits import pipeline
from efface.errors import BadInput
from efface.query import Query
from efface.util.files import writing
from experiments.digits.experiment import MODELS, QUERY, Experiment
from experiments.digits.plots import Series, alphas_plot, search_plot
from experiments.digits.records import SEARCHES, Line
from experiments.digits.search import key, query_of
from experiments.network import bfloat16

SHOWN = 4  # pictures in a cell
TONES = {"original": "a", "fine-tuned": "b", "prompt layers": "d", "task vector": "c"}


class Part(NamedTuple):
    """What the page shows of one experiment; empty where there is no record."""

    title: str
    dataset: str
    target: str
    steps: int
    alpha: float
    rows: Sequence[Line]
    worst: Mapping[str, Line]
    models: Sequence[str]
    sheet: Sequence[tuple[str, Sequence[str]]]
    search: str
    lines: Sequence[Line]
    alphas: str
    l_uncond: Mapping[str, Line]
    gradient: Sequence[Line]
    control: Sequence[Line]
    inversion: Sequence[Line]
    verdicts: Sequence[str]
    judge: Line


def write(folder: Path, path: Path, weights: Path | None = None) -> Path:
    """Write the page about every experiment with a table 1 in `folder`; raises `BadInput` when there is none."""
    found = sorted(folder.glob("*-table1.json"), key=lambda p: (not p.name.startswith("mnist"), p.name))
    if not found:
        raise BadInput(f"no records in {folder}: run `python -m experiments.digits table1` first")
    names = [re.fullmatch(r"([a-z]+)-(.+)-table1\.json", p.name) for p in found]
    experiments = [Experiment(m[1], m[2], folder, weights or pipeline.WEIGHTS) for m in names if m]
    with bfloat16():
        text = render([part(experiment) for experiment in experiments])
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(parts: Sequence[Part]) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval}
    return environment.get_template("page.html.j2").render(parts=parts, tones=TONES)


def part(experiment: Experiment) -> Part:
    """Gather the records of one experiment and generate its images."""
    records = experiment.records
    table, search, inverted = records.table1(), records.search(), records.inversion()
    alpha = table["alpha"]
    lines, gradient, control, inverse = (_ordered(found) for found in (*(search[kind] for kind in SEARCHES), inverted))
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
        l_uncond=search["l_uncond"],
        gradient=[_shown(experiment, line) for line in gradient],
        control=control,
        inversion=[_shown(experiment, line) for line in inverse],
        verdicts=verdicts(table, main, gradient, inverse),
        judge=table["judge"],
    )


def verdicts(
    table: Line,
    lines: Sequence[Line],
    gradient: Sequence[Line],
    inverted: Sequence[Line],
) -> list[str]:
    """Return sentences: the most unsafe prompt of any search, by model, and whether the intervals are apart."""
    best = worst(table, [*lines, *gradient, *inverted])
    sentences = [
        f"{name}: the worst prompt found gives the class in {percent(found)} ({interval(found)})"
        for name, found in best.items()
    ]
    if {"fine-tuned", "task vector"} <= set(best):
        tuned, vector = best["fine-tuned"]["ci95"], best["task vector"]["ci95"]
        safer = "the worst prompt of the {} model is safer than that of the {} one: the intervals are apart"
        if vector[1] < tuned[0]:
            sentences.append(safer.format("task vector's", "fine-tuned"))
        elif tuned[1] < vector[0]:
            sentences.append(safer.format("fine-tuned", "task vector's"))
        else:
            sentences.append("the worst prompts of the two edits cannot be told apart: their intervals overlap")
    return sentences


def worst(table: Line, found: Sequence[Line]) -> dict[str, Line]:
    """Return by model what its most unsafe prompt of any search gives; the task vector's is of the table's length."""
    by_model = {
        name: [x["best"] for x in found if x["model"] == name and x["alpha"] in (0.0, table["alpha"])]
        for name in MODELS
    }
    return {name: max(known, key=lambda x: x["share"]) for name, known in by_model.items() if known}


def percent(side: Line) -> str:
    """Write a share."""
    return f"{100 * side['share']:.1f} %"


def interval(side: Line) -> str:
    """Write its interval and n."""
    low, high = side["ci95"]
    return f"{100 * low:.1f}–{100 * high:.1f}, n = {side['n']:,}"


def _ordered(lines: Mapping[str, Line]) -> list[Line]:
    """Return a record's lines by model, length and grid."""
    return sorted(lines.values(), key=lambda x: (MODELS.index(x["model"]), x["alpha"], x.get("levels", 0)))


def _series(lines: Sequence[Line]) -> list[Series]:
    return [
        Series(name, TONES[name], [(x["levels"], x["best"]["share"], *x["best"]["ci95"]) for x in own])
        for name in MODELS
        if (own := [line for line in lines if line["model"] == name])
    ]


def _series_of_gradient(lines: Sequence[Line], alpha: float) -> list[Series]:
    chosen = [x for x in lines if x["alpha"] in (0.0, alpha)]
    return [Series(x["model"], TONES[x["model"]], [(0, x["best"]["share"], *x["best"]["ci95"])]) for x in chosen]


def _sheet(experiment: Experiment, models: Sequence[str], alpha: float) -> list[tuple[str, list[str]]]:
    """Generate every class by every model with the same seeds, the target first (figure 7)."""
    names = (experiment.target, *experiment.others)
    queries = [_query(name, seed) for name in names for seed in range(SHOWN)]
    images = {name: experiment.model(name, alpha).generate(queries) for name in models}
    rows = []
    for i, name in enumerate(names):
        cells = [_strip(images[model][i * SHOWN : (i + 1) * SHOWN]) for model in models]
        rows.append((name, cells))
    return rows


def _shown(experiment: Experiment, line: Line) -> dict[str, Any]:
    """Add pictures of a record's best prompt."""
    query = query_of(line)
    images = experiment.model(line["model"], line["alpha"]).generate(
        [_query(query.prompt, seed) for seed in range(100, 100 + SHOWN)]
    )
    return {
        **line,
        "name": key(line["model"], line["alpha"]).replace("-vector-", " vector, α = "),
        "strip": _strip(images),
    }


def _query(prompt: str, seed: int) -> Query:
    return replace(QUERY, prompt=prompt, seed=seed)


def _strip(images: Any) -> str:
    """Put pictures side by side, enlarged twice without smoothing."""
    from efface.report.grid import data_uri, to_image

    wide = F.pad(
        images.repeat_interleave(2, 2).repeat_interleave(2, 3), (0, 4), value=0.5
    )  # grey parts them on white and on black
    return data_uri(to_image(torch.cat(list(wide), 2)[:, :, :-4]))
