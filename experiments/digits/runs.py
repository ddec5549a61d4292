"""The measurements one by one: each is done once, written down at once, and found again by the next run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from efface.edits.provenance import versions
from efface.errors import BadInput
from experiments.digits.experiment import MODELS, Clock, Experiment
from experiments.digits.records import SEARCHES, Line
from experiments.digits.search import (
    Gradient,
    control,
    gradient_search,
    grid_search,
    inversion,
    key,
    l_uncond,
)
from experiments.digits.table import table1

ASCENT = Gradient()


def run_table1(experiment: Experiment, seeds: int = 120) -> dict[str, Any]:
    """Return table 1, measured now or read back when it was measured with as many seeds."""
    record = experiment.records.table1()
    ids = {name: _id(experiment, name) for name in MODELS}
    if record and record["seeds"] == seeds and record["weights"] == ids:
        return record
    clock = Clock()
    record = {**table1(experiment, seeds), "seeds": seeds, "weights": ids, **clock()}
    experiment.records.write("table1", {**record, "versions": versions()})
    return experiment.records.table1()


def alpha_of(experiment: Experiment) -> float:
    """Return the task vector's length that table 1 chose; raises `BadInput` when there is no table yet."""
    record = experiment.records.table1()
    if not record:
        raise BadInput(
            "`python -m experiments.digits table1` chooses the length of the task vector: run it first, or give --alpha"
        )
    return float(record["alpha"])


def variants(experiment: Experiment, names: Sequence[str], alphas: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yield (model, alpha): the task vector once for every alpha, by default the one of table 1."""
    for name in names:
        for alpha in (tuple(alphas) or (alpha_of(experiment),)) if name == "task vector" else (0.0,):
            yield name, alpha


def run_search(
    experiment: Experiment,
    names: Sequence[str] = MODELS,
    alphas: Sequence[float] = (),
    levels: Sequence[int] = (2, 3, 4, 5),
    ascent: bool = True,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Search the grids of several models, and by gradient ascent; return the record with L_uncond. Skips what is there.

    report: called with a line about every search.
    """
    before = experiment.records.search()
    fresh = before | {kind: _fresh(experiment, before[kind], names) for kind in SEARCHES}
    if fresh != before:
        experiment.records.write("search", fresh)
    for name, alpha in variants(experiment, names, alphas):
        model = f"{key(name, alpha)}-seed{seed}"
        todo: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
            (
                "grid",
                f"{model}-L{level}",
                lambda n=name, a=alpha, level=level: grid_search(experiment, n, a, level, seed),
            )
            for level in sorted(levels)
        ]
        if ascent:
            todo.append(("gradient", model, lambda n=name, a=alpha: gradient_search(experiment, n, a, ASCENT, seed)))
        if max(levels) >= 4:
            todo.append(("control", model, lambda n=name, a=alpha: control(experiment, n, a, max(levels))))
        for kind, where, measure in todo:
            line = _once(experiment, kind, where, measure)
            if kind != "control":
                report(line_of(line))
    record = experiment.records.search()
    lines = list(record["grid"].values())
    record["l_uncond"] = {key(*_who(x)): l_uncond([y for y in lines if _who(y) == _who(x)]) for x in lines}
    experiment.records.write("search", record)
    return record


def _fresh(experiment: Experiment, lines: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a record without what was measured on other weights than these models have now, so that none are mixed."""
    ours = {where for where, line in lines.items() if line["model"] in names}
    return {where: line for where, line in lines.items() if where not in ours or _known(lines, where, experiment)}


def _once(experiment: Experiment, kind: str, where: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a line of the search's record, measured now unless it is there.

    The record is read again before it is written, so that two models can be searched side by side.
    """
    if not _known(experiment.records.search()[kind], where, experiment):
        line = _with(measure(), experiment)
        record = experiment.records.search()
        record[kind][where] = line
        experiment.records.write("search", record)
    return experiment.records.search()[kind][where]


def run_inversion(
    experiment: Experiment, names: Sequence[str] = MODELS, alphas: Sequence[float] = (), seed: int = 0
) -> dict[str, Any]:
    """Invert the erased class in several models and return the record; skips what is there."""
    record = _fresh(experiment, experiment.records.inversion(), names)
    for name, alpha in variants(experiment, names, alphas):
        where = f"{key(name, alpha)}-seed{seed}"
        if not _known(record, where, experiment):
            record[where] = _with(inversion(experiment, name, alpha, seed), experiment)
            experiment.records.write("inversion", record)
    return record


def line_of(line: Line, without_grid: str = "gradient") -> str:
    """Return one line about what a search found; without_grid: the name of a search that has no L."""
    best, (low, high) = line["best"], line["best"]["ci95"]
    name = key(line["model"], line["alpha"])
    how = f"L = {line['levels']}" if "levels" in line else without_grid
    return (
        f"{name:18} {how:9} {best['share']:6.1%} ({low:.1%} to {high:.1%}, n = {best['n']}), "
        f"{line['images']:,.0f} images, {line['seconds']:.0f} s"
    )


def _who(line: Line) -> tuple[str, float]:
    return line["model"], line["alpha"]


def _id(experiment: Experiment, name: str) -> str:
    """Return the id of a model's weights; task vectors of all lengths share one."""
    return (experiment.original if name == "original" else experiment.edit(name)).id[:16]


def _with(line: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """Note in a record which weights it is of."""
    return {**line, "weights": _id(experiment, line["model"])}


def _known(record: dict[str, Any], where: str, experiment: Experiment) -> bool:
    """Return whether a record holds this measurement, of the weights that are there now."""
    return where in record and record[where]["weights"] == _id(experiment, record[where]["model"])
