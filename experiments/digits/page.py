"""One page from the records: table 1, the search over prompts, inversion, pictures. No number is made here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from efface.digits import pipeline
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.report import grid, html
from efface.util.files import writing
from experiments.digits.experiment import MODELS, QUERY, Experiment
from experiments.digits.plots import Series, alphas_plot, point, search_plot
from experiments.digits.records import (
    Archive,
    Best,
    Bound,
    Control,
    Experimented,
    Searched,
    Searches,
    experiments,
    read,
)
from experiments.digits.runs import searched
from experiments.digits.search import Smallest, key, l_uncond
from experiments.network import bfloat16

SHOWN = 4  # pictures in a cell
FRESH = 100  # the first seed of the pictures of a prompt that was found
TONES = {"original": "a", "fine-tuned": "b", "fixed prompts": "e", "prompt layers": "d", "task vector": "c"}
CELL = grid.Layout(width=28, height=28, gap=2, gutter=0, text=0, pad=0)  # the page enlarges it


@dataclass(frozen=True)
class Side:
    """One line of table 1: a model, and how often it shows what it is asked for."""

    name: str
    target: Share
    others: Share


@dataclass(frozen=True)
class Shown:
    """One search, and pictures of its best prompt as a data URI, "" where the model is not here."""

    line: Searched
    strip: str = ""


@dataclass(frozen=True)
class Part:
    """What the page shows of one experiment, computed from its records; sheet: pictures of every class by model."""

    found: Experimented
    shown: Mapping[str, Sequence[Shown]]
    sheet: Sequence[tuple[str, Sequence[str]]] = ()
    models: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Return what was erased."""
        kind = "Digit" if self.found.dataset == "mnist" else "Fashion-MNIST class"
        return f"{kind} {self.found.target}" + (f", training seed {self.found.seed}" if self.found.seed else "")

    @property
    def alpha(self) -> float:
        """Return the length of the task vector, 0 without one."""
        return length_of(self.found)

    @property
    def rows(self) -> list[Side]:
        """Return table 1."""
        return sides(self.found.table1)

    @property
    def worst(self) -> dict[str, Best]:
        """Return by model what its most unsafe prompt of any search gives."""
        return worst(self.found)

    @property
    def verdicts(self) -> list[str]:
        """Return sentences about the most unsafe prompts."""
        return verdicts(self.worst)

    @property
    def control(self) -> list[Control]:
        """Return random prompts of the grids."""
        return list(self.found.searches.control.values())

    @property
    def bounds(self) -> list[Bound]:
        """Return the bounds over the whole sphere."""
        return list(self.found.searches.bound.values())

    def found_worst(self, line: Bound) -> Share | None:
        """Return what the most unsafe prompt found in a model gives, None without a search."""
        lines = searched(self.found.searches, line.model, line.alpha)
        return max((one.best.second for one in lines), key=lambda share: share.value, default=None)

    @property
    def l_uncond(self) -> dict[str, dict[str, Smallest]]:
        """Return L_uncond by model and ε."""
        return smallest_grids(self.found.searches)

    @property
    def search(self) -> str:
        """Return the plot of the most unsafe prompts, "" without a search."""
        searches = self.found.searches
        grids, climbs = (_main(lines.values(), self.alpha) for lines in (searches.grid, searches.gradient))
        return search_plot(_series(grids), _series(climbs)) if grids else ""

    @property
    def alphas(self) -> str:
        """Return the plot of the lengths, "" without a task vector."""
        searches = self.found.searches
        if self.found.lengths is None:
            return ""
        return alphas_plot(self.found.lengths, [*searches.grid.values(), *searches.gradient.values()])


def write(source: Path, path: Path, weights: Path | None = None) -> Path:
    """Write the page about a folder of records, or about a file that `benchmarks.digits` made of one.

    Raises `BadInput` for a folder without a table 1. Pictures are of the models whose edits are in the folder.
    """
    whole = source.suffix == ".json"
    found = read(Archive, source).experiments if whole else experiments(source)
    with bfloat16():
        parts = [
            Part(one, _plain(one))
            if whole
            else part(one, Experiment(one.dataset, one.target, source, weights or pipeline.WEIGHTS, one.seed))
            for one in found
        ]
    text = render(parts)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(parts: Sequence[Part]) -> str:
    """Return the page as HTML."""
    template = (Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    return str(html.fragment(template, parts=parts, tones=TONES, percent=percent, interval=interval, called=called))


def part(found: Experimented, experiment: Experiment) -> Part:
    """Put pictures beside the records of one experiment, of the models whose edits are in its folder."""
    models = [name for name in MODELS if name == "original" or experiment.edit_path(name).is_file()]
    shown = {
        kind: [Shown(one.line, _strip_of(experiment, one.line) if one.line.model in models else "") for one in lines]
        for kind, lines in _plain(found).items()
    }
    return Part(found, shown, _sheet(experiment, models, length_of(found)), models)


def _plain(found: Experimented) -> dict[str, list[Shown]]:
    """Return the searches by kind without pictures, by model, length and grid."""
    by_kind = {kind: getattr(found.searches, kind).values() for kind in ("grid", "gradient", "inversion")}
    return {kind: [Shown(line) for line in sorted(lines, key=_order)] for kind, lines in by_kind.items()}


def _order(line: Searched) -> tuple[int, float, int]:
    return MODELS.index(line.model), line.alpha, line.values


def sides(records: Sequence[Scored]) -> list[Side]:
    """Return the lines of table 1: the original as the first record has it, then every edit."""
    found = [(record.name, record.summaries["target"], record.summaries["unrelated"]) for record in records]
    original = [Side("original", target.before, others.before) for _, target, others in found[:1]]
    return original + [Side(name, target.after, others.after) for name, target, others in found]


def worst(found: Experimented) -> dict[str, Best]:
    """Return by model its most unsafe prompt of any search; the task vector's is of the length of table 1."""
    searches = found.searches
    lines: list[Searched] = [*searches.grid.values(), *searches.gradient.values(), *searches.inversion.values()]
    best: dict[str, Best] = {}
    for line in sorted(_main(lines, length_of(found)), key=_order):
        if line.model not in best or line.best.second.value > best[line.model].second.value:
            best[line.model] = line.best
    return best


def length_of(found: Experimented) -> float:
    """Return the length of table 1's task vector, 0 without one."""
    return found.lengths.chosen if found.lengths else 0.0


def smallest_grids(searches: Searches) -> dict[str, dict[str, Smallest]]:
    """Return L_uncond by model and ε, among the grids that were searched."""
    lines = sorted(searches.grid.values(), key=_order)
    return {who: l_uncond([x for x in lines if called(x) == who]) for who in dict.fromkeys(map(called, lines))}


def verdicts(best: Mapping[str, Best]) -> list[str]:
    """Return sentences: the most unsafe prompt of any search, by model, and whether the intervals are apart."""
    sentences = [
        f"{name}: the worst prompt found gives the class in {percent(one.second)} ({interval(one.second)})"
        for name, one in best.items()
    ]
    if {"fine-tuned", "task vector"} <= set(best):
        tuned, vector = best["fine-tuned"].second.interval, best["task vector"].second.interval
        safer = "the worst prompt of the {} model is safer than that of the {} one: the intervals are apart"
        if vector.high < tuned.low:
            sentences.append(safer.format("task vector's", "fine-tuned"))
        elif tuned.high < vector.low:
            sentences.append(safer.format("fine-tuned", "task vector's"))
        else:
            sentences.append("the worst prompts of the two edits cannot be told apart: their intervals overlap")
    return sentences


def percent(share: Share) -> str:
    """Write a share."""
    return f"{100 * share.value:.1f} %"


def interval(share: Share) -> str:
    """Write its interval and n."""
    low, high = share.interval
    return f"{100 * low:.1f}–{100 * high:.1f}, n = {share.n:,}"


def called(line: Searched) -> str:
    """Return what a model is called, with the length of its task vector."""
    return key(line.model, line.alpha).replace("-vector-", " vector, α = ")


def _main(lines: Iterable[Searched], alpha: float) -> list[Searched]:
    """Return the searches of the models of table 1."""
    return [line for line in lines if line.alpha in (0.0, alpha)]


def _series(lines: Sequence[Searched]) -> list[Series]:
    by_model = {name: sorted((x for x in lines if x.model == name), key=_order) for name in MODELS}
    return [
        Series(name, TONES[name], [point(x.values, x.best.second) for x in own])
        for name, own in by_model.items()
        if own
    ]


def _sheet(experiment: Experiment, models: Sequence[str], alpha: float) -> list[tuple[str, list[str]]]:
    """Generate every class by every model with the same seeds, the target first (figure 7)."""
    names = (experiment.target, *experiment.others)
    queries = [replace(QUERY, prompt=name, seed=seed) for name in names for seed in range(SHOWN)]
    images = [experiment.model(name, alpha).generate(queries).split(SHOWN) for name in models]
    return [(name, [_strip(model[i]) for model in images]) for i, name in enumerate(names)]


def _strip_of(experiment: Experiment, line: Searched) -> str:
    queries = [replace(QUERY, prompt=line.best.prompt, seed=FRESH + seed) for seed in range(SHOWN)]
    return _strip(experiment.model(line.model, line.alpha).generate(queries))


def _strip(images: Float[Tensor, "n 3 28 28"]) -> str:
    return grid.data_uri(grid.strip(images, CELL))
