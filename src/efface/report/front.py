"""The front: erasure against preservation, one point an edit, coloured by how well it stands attacks. Inline SVG."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from efface.evaluation.summary import Share
from efface.report.html import fragment
from efface.report.page import Column

WIDE, HIGH, PAD = 640, 400, 52  # px of the plot, and of its margins
LINE = 15  # px between two labels
STAY = ("related", "unrelated")  # groups that should stay

TEMPLATE = """
<figure class="front">
<svg viewBox="0 0 {{ wide + 190 }} {{ high + 56 }}" role="img" aria-label="erasure against preservation">
<rect x="{{ pad }}" y="8" width="{{ wide - pad }}" height="{{ high - 8 }}" fill="none" stroke="var(--rule)"/>
{% for tick in ticks %}
<line x1="{{ tick.x }}" x2="{{ tick.x }}" y1="8" y2="{{ high }}" stroke="var(--rule)"/>
<line x1="{{ pad }}" x2="{{ wide }}" y1="{{ tick.y }}" y2="{{ tick.y }}" stroke="var(--rule)"/>
<text x="{{ tick.x }}" y="{{ high + 18 }}" text-anchor="middle">{{ tick.label }}</text>
<text x="{{ pad - 8 }}" y="{{ tick.y + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor %}
<text x="{{ (pad + wide) / 2 }}" y="{{ high + 40 }}" text-anchor="middle">erased: images without the concept, %</text>
<text transform="translate(14 {{ high / 2 }}) rotate(-90)" text-anchor="middle">preserved: others drawn right, %</text>
{% for point in points %}
<line x1="{{ point.x0 }}" x2="{{ point.x1 }}" y1="{{ point.y }}" y2="{{ point.y }}" stroke="var(--soft)"/>
<line x1="{{ point.x }}" x2="{{ point.x }}" y1="{{ point.y0 }}" y2="{{ point.y1 }}" stroke="var(--soft)"/>
<line x1="{{ point.x }}" x2="{{ wide + 10 }}" y1="{{ point.y }}" y2="{{ point.label_y - 4 }}" stroke="var(--soft)"
 stroke-width=".6" stroke-dasharray="2 2"/>
<circle cx="{{ point.x }}" cy="{{ point.y }}" r="7" fill="{{ point.colour }}" stroke="var(--paper)" stroke-width="1.5">
<title>{{ point.about }}</title></circle>
<text x="{{ wide + 14 }}" y="{{ point.label_y }}">{{ point.name }}</text>
{% endfor %}
</svg>
<figcaption class="soft">The best edits are top right. Lines are 95 % intervals over images; images of
one concept share an edit, so true intervals are wider. Colour: the most successful attack
brings the concept back in <span style="color: var(--good)">●</span> under a fifth,
<span style="color: var(--mixed)">●</span> under two thirds,
<span style="color: var(--bad)">●</span> more of the images;
<span style="color: var(--bar)">●</span> not attacked.</figcaption>
</figure>
"""


class Point(NamedTuple):
    """Hold a point's place, the ends of its intervals, its colour, and the place of its label, px."""

    name: str
    about: str
    colour: str
    x: float
    y: float
    x0: float
    x1: float
    y0: float
    y1: float
    label_y: float = 0.0


class Tick(NamedTuple):
    """Hold the place of a tick on both axes, px."""

    label: str
    x: float
    y: float


def erased(columns: Sequence[Column]) -> Share:
    """Return the share of target images that do not show the concept, over the columns' records."""
    return _pooled(columns, ("target",)).rest


def kept(columns: Sequence[Column]) -> Share:
    """Return the share of images of other concepts that are drawn right."""
    return _pooled(columns, STAY)


def worst(columns: Sequence[Column]) -> tuple[str, Share] | None:
    """Return the most successful attack and its rate, over the columns' records; None without attacks."""
    found: dict[str, list[bool]] = {}
    for column in columns:
        for strip in column.attacks:
            found.setdefault(strip.attack, []).extend(row.after for row in strip.record.rows)
    rates = {name: Share.of(after) for name, after in found.items()}
    return max(rates.items(), key=lambda pair: pair[1].value) if rates else None


def draw(edits: Mapping[str, Sequence[Column]]) -> Markup:
    """Return the plot: one point for each edit's columns, which may be of several concepts; "" for none."""
    points = sorted((_point(name, columns) for name, columns in edits.items()), key=lambda point: point.y)
    placed: list[Point] = []
    for point in points:
        above = placed[-1].label_y + LINE if placed else 20.0
        placed.append(point._replace(label_y=round(max(point.y + 4, above), 1)))
    marks = [Tick(str(n), _x(n / 100), _y(n / 100)) for n in range(0, 101, 20)]
    return fragment(TEMPLATE, points=placed, ticks=marks, wide=WIDE, high=HIGH, pad=PAD) if placed else Markup("")


def _point(name: str, columns: Sequence[Column]) -> Point:
    across, up, attack = erased(columns), kept(columns), worst(columns)
    about = f"{name}: erased {100 * across.value:.0f} % of {across.n}, preserved {100 * up.value:.0f} % of {up.n}"
    colour = "var(--bar)"
    if attack:
        share = attack[1].value
        colour = f"var(--{'good' if share < 0.2 else 'mixed' if share < 2 / 3 else 'bad'})"
        about += f", {attack[0]} {attack[1]}"
    ends = [_x(end) for end in across.interval] + [_y(end) for end in up.interval]
    return Point(name, about, colour, _x(across.value), _y(up.value), *ends)


def _pooled(columns: Sequence[Column], groups: Sequence[str]) -> Share:
    shares = [column.record.summaries[g].after for column in columns for g in groups if g in column.record.summaries]
    return sum(shares, Share(hits=0, n=0))


def _x(share: float) -> float:
    return round(PAD + share * (WIDE - PAD), 1)


def _y(share: float) -> float:
    return round(HIGH - share * (HIGH - 8), 1)
