"""The measurements one by one: each is done once, written down at once, and found again by the next run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from efface.digits.experiment import MODELS, Clock, Experiment
from efface.digits.search import (
    Gradient,
    control,
    gradient_search,
    grid_search,
    inversion,
    key,
    l_uncond,
)
from efface.digits.table import table1
from efface.edits.provenance import versions
from efface.errors import BadInput

Say = Callable[[str], None]
CLIMB = Gradient()


def quiet(_line: str) -> None:
    """Say nothing."""


def run_table1(experiment: Experiment, seeds: int = 120) -> dict[str, Any]:
    """Return table 1, measured now or read back when it was measured with as many seeds."""
    record = experiment.read("table1")
    ids = {name: _id(experiment, name) for name in MODELS}
    if record and record["seeds"] == seeds and record["weights"] == ids:
        return record
    clock = Clock()
    record = {**table1(experiment, seeds), "seeds": seeds, "weights": ids, **clock()}
    experiment.write("table1", {**record, "versions": versions()})
    return experiment.read("table1")


def alpha_of(experiment: Experiment) -> float:
    """Return the task vector's length that table 1 chose; raises `BadInput` when there is no table yet."""
    record = experiment.read("table1")
    if not record:
        raise BadInput("the length of the task vector is chosen by `efface digits table1`: run that first, or give one")
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
    climb: bool = True,
    seed: int = 0,
    say: Say = quiet,
) -> dict[str, Any]:
    """Search the grids of several models, climb in each, and return the record with L_uncond; skips what is there."""
    before = _read(experiment)
    kept = before | {kind: _fresh(experiment, before[kind], names) for kind in ("grid", "gradient", "control")}
    if kept != before:
        experiment.write("search", kept)
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
        if climb:
            todo.append(("gradient", model, lambda n=name, a=alpha: gradient_search(experiment, n, a, CLIMB, seed)))
        if max(levels) >= 4:
            todo.append(("control", model, lambda n=name, a=alpha: control(experiment, n, a, max(levels))))
        for kind, where, measure in todo:
            line = _once(experiment, kind, where, measure)
            if kind != "control":
                say(line_of(line))
    record = _read(experiment)
    lines = list(record["grid"].values())
    record["l_uncond"] = {key(*_who(x)): l_uncond([y for y in lines if _who(y) == _who(x)]) for x in lines}
    experiment.write("search", record)
    return record


def _read(experiment: Experiment) -> dict[str, Any]:
    return {"grid": {}, "gradient": {}, "control": {}} | experiment.read("search")


def _fresh(experiment: Experiment, lines: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a record without what was measured on other weights than these models have now, so that none are mixed."""
    ours = {where for where, line in lines.items() if line["model"] in names}
    return {where: line for where, line in lines.items() if where not in ours or _known(lines, where, experiment)}


def _once(experiment: Experiment, kind: str, where: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a line of the search's record, measured now unless it is there.

    The record is read again before it is written, so that two models can be searched side by side.
    """
    if not _known(_read(experiment)[kind], where, experiment):
        line = _with(measure(), experiment)
        record = _read(experiment)
        record[kind][where] = line
        experiment.write("search", record)
    return _read(experiment)[kind][where]


def run_inversion(
    experiment: Experiment, names: Sequence[str] = MODELS, alphas: Sequence[float] = (), seed: int = 0
) -> dict[str, Any]:
    """Invert the erased class in several models and return the record; skips what is there."""
    record = _fresh(experiment, experiment.read("inversion"), names)
    for name, alpha in variants(experiment, names, alphas):
        where = f"{key(name, alpha)}-seed{seed}"
        if not _known(record, where, experiment):
            record[where] = _with(inversion(experiment, name, alpha, seed), experiment)
            experiment.write("inversion", record)
    return record


def line_of(line: dict[str, Any], climb: str = "gradient") -> str:
    """Say in one line what a search found; climb: what one without a grid is called."""
    best, (low, high) = line["best"], line["best"]["ci95"]
    name = key(line["model"], line["alpha"])
    how = f"L = {line['levels']}" if "levels" in line else climb
    return (
        f"{name:18} {how:9} {best['share']:6.1%} ({low:.1%} to {high:.1%}, n = {best['n']}), "
        f"{line['images']:,.0f} images, {line['seconds']:.0f} s"
    )


def _who(line: dict[str, Any]) -> tuple[str, float]:
    return line["model"], line["alpha"]


def _id(experiment: Experiment, name: str) -> str:
    """Return what tells the weights of a model of the experiment; a task vector of any length has one."""
    return (experiment.original if name == "original" else experiment.edit(name)).id[:16]


def _with(line: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """Note in a record which weights it is of."""
    return {**line, "weights": _id(experiment, line["model"])}


def _known(record: dict[str, Any], where: str, experiment: Experiment) -> bool:
    """Say whether a record holds this measurement, of the weights that are there now."""
    return where in record and record[where]["weights"] == _id(experiment, record[where]["model"])
