"""Two line plots as SVG whose colours are the page's own CSS variables, so that they follow light and dark."""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from efface.evaluation.summary import Share
from experiments.digits.records import Lengths, Searched

Point = tuple[float | int, float, float, float]  # x, y, low, high
# Colours that stand for the page's variables until the SVG is written.
COLOURS = {name: f"#0102{i:02x}" for i, name in enumerate(("a", "b", "c", "d", "e", "ink", "soft", "rule"))}


class Series(NamedTuple):
    """A line: its name, its colour ("a" to "e") and its points with intervals."""

    name: str
    tone: str
    points: Sequence[Point]


def search_plot(grid: Sequence[Series], gradient: Sequence[Series]) -> str:
    """Plot the probability of the class at the most unsafe prompt against L; gradient ascent's is at the right."""
    levels = sorted({x for series in grid for x, *_ in series.points})
    last = levels[-1] + 1
    moved = [s._replace(points=[(last, *rest) for _, *rest in s.points]) for s in gradient]
    figure, axes = _axes("L, values of each of the 8 numbers")
    shift = {
        "a": -0.04,
        "b": -0.02,
        "e": 0.0,
        "d": 0.02,
        "c": 0.04,
    }  # so that intervals at 100 % do not hide each other
    for series in (*grid, *moved):
        _plot(axes, series, shift[series.tone] * (last - levels[0]), dashed=series in moved, label=series in grid)
    ticks = [*levels, last] if gradient else levels
    axes.set_xticks(ticks, [f"{x:g}" if x in levels else "gradient" for x in ticks])
    return _svg(figure, "The most unsafe prompt of every grid")


def alphas_plot(lengths: Lengths, lines: Sequence[Searched]) -> str:
    """Plot accuracies on target and others against alpha, and the worst that searches made at every alpha find."""
    figure, axes = _axes("α, length of the task vector")
    axes.axvline(lengths.chosen, color=COLOURS["soft"], linestyle=(0, (3, 3)), linewidth=1)
    _plot(axes, Series("asked for others", "b", [point(x.alpha, x.others) for x in lengths.tried]))
    _plot(axes, Series("asked for target", "a", [point(x.alpha, x.target) for x in lengths.tried]))
    if worst := worst_by_alpha(lines):
        _plot(axes, Series("worst prompt found", "c", worst))
    axes.set_xlim(left=0)
    return _svg(figure, "How long the task vector may be")


def worst_by_alpha(lines: Sequence[Searched]) -> list[Point]:
    """Return the most unsafe prompt of every length of the task vector, among the searches that all lengths had.

    [] unless several lengths were searched in the same way.
    """
    vector = [line for line in lines if line.model == "task vector"]
    by_alpha = {a: [x for x in vector if x.alpha == a] for a in sorted({x.alpha for x in vector})}
    common = set.intersection(*({x.values for x in own} for own in by_alpha.values())) if by_alpha else set()
    if len(by_alpha) < 2 or not common:
        return []
    shares = {a: [x.best.second for x in own if x.values in common] for a, own in by_alpha.items()}
    return [point(a, max(own, key=lambda share: share.value)) for a, own in shares.items()]


def point(x: float | int, share: Share) -> Point:
    """Return the point of a share with its interval."""
    low, high = share.interval
    return (x, share.value, low, high)


def _axes(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.8, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label, color=COLOURS["soft"])
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", color=COLOURS["rule"])
    axes.tick_params(colors=COLOURS["ink"], length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _plot(axes: Any, series: Series, shift: float = 0.0, dashed: bool = False, label: bool = True) -> None:
    """Add a line with a dot and an upright interval at every point."""
    x, y, low, high = (list(column) for column in zip(*series.points, strict=True))
    apart = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    apart = [[max(0.0, end) for end in side] for side in apart]  # an interval's rounded end may be past the share
    style = {"color": COLOURS[series.tone], "linewidth": 1.6, "marker": "o", "markersize": 5 if len(x) <= 10 else 3}
    name = series.name if label else None
    bars = axes.errorbar([value + shift for value in x], y, yerr=apart, label=name, **style)
    if dashed:
        bars[2][0].set_linestyle((0, (3, 2)))


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an SVG element to stand inside a page."""
    figure.legend(loc="outside right upper", frameon=False, labelcolor=COLOURS["ink"])
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 9}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{title}" ', 1)
