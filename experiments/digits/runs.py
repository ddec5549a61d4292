"""The measurements one by one: each is done once, written down at once, and found again by the next run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from efface.digits.prompts import prompt_vector
from efface.errors import BadInput
from efface.evaluation.record import Record
from efface.evaluation.summary import Share
from experiments.digits.bound import Sampling, bound
from experiments.digits.experiment import MODELS, Experiment
from experiments.digits.records import Attacked, Bound, Kind, Lengths, Searched, Searches
from experiments.digits.search import Gradient, control, gradient_search, grid_search, inversion, key
from experiments.digits.table import table1, try_lengths

ASCENT, BOUND = Gradient(), Sampling()
Measure = Callable[[], Attacked]


def run_table1(
    experiment: Experiment, seeds: int = 120, names: Sequence[str] = MODELS
) -> tuple[Lengths | None, list[Record]]:
    """Return the lengths that were tried and table 1, measured now where no record is of these weights and seeds.

    names: models to measure; records of others stay as they are. Without the task vector no length is tried.
    """
    records, lengths = experiment.records, experiment.records.lengths()
    if "task vector" in names and (lengths is None or lengths.weights != experiment.edit("task vector").id):
        lengths = try_lengths(experiment)
        records.write("lengths", lengths)
    path, found = records.path("table1", ".jsonl"), {one.name: one for one in records.table1()}
    for name in (name for name in names if name != "original"):  # it is judged beside every edit
        alpha = lengths.chosen if lengths and name == "task vector" else 1.0
        record, edit = found.get(name), experiment.changed(name, alpha)
        if not (isinstance(record, Record) and record.edit.id == edit.id and _asked(record, seeds)):
            found[name] = table1(experiment, name, alpha, seeds)
            path.unlink(missing_ok=True)
            for known in MODELS:
                if known in found:
                    found[known].append(path)
    return lengths, [one for one in (found.get(name) for name in MODELS) if isinstance(one, Record)]


def _asked(record: Record, seeds: int) -> bool:
    return record.sampling.seeds["seeds"] == tuple(range(seeds))


def alpha_of(experiment: Experiment) -> float:
    """Return the task vector's length that table 1 chose; raises `BadInput` when there is no table yet."""
    lengths = experiment.records.lengths()
    if lengths is None:
        raise BadInput(
            "`python -m experiments.digits table1` chooses the length of the task vector: run it first, or give --alpha"
        )
    return lengths.chosen


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
) -> Searches:
    """Search the grids of several models, and by gradient ascent; return all that is on record. Skips what is there.

    report: called with a line about every search.
    """
    _forget(experiment, ("grid", "gradient", "control"), names)
    for name, alpha in variants(experiment, names, alphas):
        model = f"{key(name, alpha)}-seed{seed}"
        todo: list[tuple[Kind, str, Measure]] = [
            ("grid", f"{model}-L{level}", partial(grid_search, experiment, name, alpha, level, seed))
            for level in sorted(levels)
        ]
        if ascent:
            todo.append(("gradient", model, partial(gradient_search, experiment, name, alpha, ASCENT, seed)))
        if max(levels) >= 4:
            todo.append(("control", model, partial(control, experiment, name, alpha, max(levels))))
        for kind, where, measure in todo:
            line = _once(experiment, kind, where, measure)
            if isinstance(line, Searched):
                report(line_of(line))
    return experiment.records.searches()


def run_inversion(
    experiment: Experiment, names: Sequence[str] = MODELS, alphas: Sequence[float] = (), seed: int = 0
) -> Searches:
    """Invert the erased class in several models; return all that is on record. Skips what is there."""
    _forget(experiment, ("inversion",), names)
    for name, alpha in variants(experiment, names, alphas):
        where = f"{key(name, alpha)}-seed{seed}"
        _once(experiment, "inversion", where, partial(inversion, experiment, name, alpha, seed))
    return experiment.records.searches()


def run_bound(
    experiment: Experiment, names: Sequence[str] = MODELS, alphas: Sequence[float] = (), seed: int = 0
) -> Searches:
    """Bound the unsafe probability of several models over the whole sphere; return all that is on record.

    Slopes are measured around the prompts that the searches on record found, so search first. Skips what is there.
    """
    _forget(experiment, ("bound",), names)
    for name, alpha in variants(experiment, names, alphas):
        known = [prompt_vector(line.best.prompt) for line in searched(experiment.records.searches(), name, alpha)]
        _once(
            experiment,
            "bound",
            f"{key(name, alpha)}-seed{seed}",
            partial(bound, experiment, name, alpha, known, BOUND, seed),
        )
    return experiment.records.searches()


def searched(found: Searches, name: str, alpha: float) -> list[Searched]:
    """Return all searches of one model."""
    lines: list[Searched] = [*found.grid.values(), *found.gradient.values(), *found.inversion.values()]
    return [line for line in lines if (line.model, line.alpha) == (name, alpha)]


def bound_line(line: Bound, found: Searches) -> str:
    """Return one line about a bound, beside the worst prompt that was found."""
    worst = max((one.best.second.value for one in searched(found, line.model, line.alpha)), default=float("nan"))
    return (
        f"{key(line.model, line.alpha):18} no prompt above {line.value:6.1%} if no slope is above "
        f"{line.steepest:.3g} a radian; worst found {worst:.1%}"
    )


def _forget(experiment: Experiment, kinds: Sequence[Kind], names: Sequence[str]) -> None:
    """Take from the record what was measured on other weights than these models have now, so that none are mixed."""
    before = after = experiment.records.searches()
    for kind in kinds:
        lines = after.of(kind)
        fresh = {w: x for w, x in lines.items() if x.model not in names or _known(lines, w, experiment)}
        after = after.with_(kind, fresh)
    if after != before:
        experiment.records.write("search", after)


def _once(experiment: Experiment, kind: Kind, where: str, measure: Measure) -> Attacked:
    """Return a measurement on record, made now unless it is there.

    The record is read again before it is written, so that two models can be searched side by side.
    """
    known = experiment.records.searches().of(kind)
    if _known(known, where, experiment):
        return known[where]
    line = measure()
    line = line.model_copy(update={"weights": _id(experiment, line.model)})
    now = experiment.records.searches()
    experiment.records.write("search", now.with_(kind, {**now.of(kind), where: line}))
    return line


def line_of(line: Searched, without_grid: str = "gradient") -> str:
    """Return one line about what a search found; without_grid: the name of a search that has no L."""
    how = f"L = {line.values}" if line.values else without_grid
    return (
        f"{key(line.model, line.alpha):18} {how:9} {written(line.best.second)}, n = {line.best.second.n}, "
        f"{line.images:,.0f} images, {line.seconds:.0f} s"
    )


def written(share: Share) -> str:
    """Write a share with its interval."""
    low, high = share.interval
    return f"{share.value:6.1%} ({low:.1%} to {high:.1%})"


def _id(experiment: Experiment, name: str) -> str:
    """Return the id of a model's weights; task vectors of all lengths share one."""
    return (experiment.original if name == "original" else experiment.edit(name)).id[:16]


def _known(lines: Mapping[str, Attacked], where: str, experiment: Experiment) -> bool:
    """Return whether this measurement is on record, of the weights that are there now."""
    return where in lines and lines[where].weights == _id(experiment, lines[where].model)
