"""Two small line plots as SVG, in the page's own colours."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Point = tuple[float | int, float, float, float]  # x, y, low, high
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 300, 46, 36, 14, 130


class Series(NamedTuple):
    """A line: its name, its colour ("a" to "d") and its points with intervals."""

    name: str
    tone: str
    points: Sequence[Point]


class Axis(NamedTuple):
    """Map values to pixels."""

    low: float | int
    high: float | int
    start: float | int
    stop: float | int

    def __call__(self, value: float | int) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)


def search_plot(grid: Sequence[Series], climbed: Sequence[Series]) -> str:
    """Plot the probability of the class at the most unsafe prompt against L; the gradient's find is at the right."""
    levels = sorted({x for series in grid for x, *_ in series.points})
    last = levels[-1] + 1 if climbed else levels[-1]
    x, y = _axes(levels[0] - 0.3, last + 0.3)
    ticks = [(level, f"{level:g}") for level in levels] + ([(last, "gradient")] if climbed else [])
    moved = [s._replace(points=[(last, *rest) for _, *rest in s.points]) for s in climbed]
    shift = {"a": -6.0, "b": -2.0, "d": 2.0, "c": 6.0}  # so that intervals at 100 % do not hide each other
    body = [_line(s, x, y, shift[s.tone]) for s in grid] + [_line(s, x, y, shift[s.tone], "5 4") for s in moved]
    return _svg(x, y, ticks, "L, values of each of the 8 numbers", body, _legend([(s.name, s.tone) for s in grid]))


def alphas_plot(sweep: Sequence[Mapping[str, Any]], chosen: float, lines: Sequence[Mapping[str, Any]]) -> str:
    """Plot accuracies on target and others against alpha, and the worst that searches made at every alpha find."""
    vector = [line for line in lines if line["model"] == "task vector"]
    by_alpha = {a: [x for x in vector if x["alpha"] == a] for a in sorted({x["alpha"] for x in vector})}
    common = set.intersection(*({_kind(x) for x in own} for own in by_alpha.values())) if by_alpha else set()
    x, y = _axes(0, max(line["alpha"] for line in sweep) * 1.03)
    series = [
        Series("asked for others", "b", [(s["alpha"], s["others"]["share"], *s["others"]["ci95"]) for s in sweep]),
        Series("asked for target", "a", [(s["alpha"], s["target"]["share"], *s["target"]["ci95"]) for s in sweep]),
    ]
    if common and len(by_alpha) > 1:
        worst = [
            max((x for x in own if _kind(x) in common), key=lambda x: x["best"]["share"]) for own in by_alpha.values()
        ]
        points = [(x["alpha"], x["best"]["share"], *x["best"]["ci95"]) for x in worst]
        series.append(Series("worst prompt found", "c", points))
    mark = f'<line x1="{x(chosen)}" x2="{x(chosen)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="chosen"/>'
    body = [mark, *(_line(s, x, y) for s in series)]
    ticks = [(value, f"{value:g}") for value in round_values(x.high)]
    return _svg(x, y, ticks, "α, length of the task vector", body, _legend([(s.name, s.tone) for s in series]))


def _kind(line: Mapping[str, Any]) -> int:
    """Return which search a line is of: a grid's L, 0 for a climb."""
    return line.get("levels", 0)


def round_values(high: float | int, most: int = 8) -> list[float | int]:
    """Return at most so many round values from 0 to `high`, evenly spaced, for the ticks of an axis."""
    step = next(s for k in range(-3, 9) for m in (1, 2, 5) if high / (s := m * 10.0**k) < most)
    return [round(i * step, 3) for i in range(int(high / step) + 1)]


def _axes(low: float | int, high: float | int) -> tuple[Axis, Axis]:
    return Axis(low, high, LEFT, WIDTH - RIGHT), Axis(0, 1, HEIGHT - BOTTOM, TOP)


def _line(series: Series, x: Axis, y: Axis, shift: float = 0.0, dash: str = "") -> str:
    """Draw one series: a line, a dot and an upright interval at every point."""
    path = " ".join(f"{x(a) + shift},{y(b)}" for a, b, _, _ in series.points)
    parts = [f'<polyline points="{path}" class="line {series.tone}"/>'] if len(series.points) > 1 else []
    radius = 4 if len(series.points) <= 10 else 2.5
    for a, b, low, high in series.points:
        at, style = x(a) + shift, f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<line x1="{at}" x2="{at}" y1="{y(low)}" y2="{y(high)}" class="span {series.tone}"{style}/>')
        parts.append(f'<circle cx="{at}" cy="{y(b)}" r="{radius}" class="dot {series.tone}"/>')
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    rows = []
    for i, (name, tone) in enumerate(entries):
        at = TOP + 10 + 22 * i
        rows.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{at}" r="4" class="dot {tone}"/>')
        rows.append(f'<text x="{WIDTH - RIGHT + 26}" y="{at + 4}">{name}</text>')
    return "".join(rows)


def _svg(
    x: Axis, y: Axis, ticks: Sequence[tuple[float | int, str]], label: str, body: Sequence[str], legend: str
) -> str:
    lines = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        lines.append(f'<line x1="{x.start}" x2="{x.stop}" y1="{y(share)}" y2="{y(share)}" class="rule"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(share) + 4}" text-anchor="end">{share:.0%}</text>')
    for value, text in ticks:
        lines.append(f'<text x="{x(value)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>')
    middle = (x.start + x.stop) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle" class="soft">{label}</text>')
    inside = "".join([*lines, *body, legend])
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'
