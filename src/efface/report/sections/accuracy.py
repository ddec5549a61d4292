"""Judged accuracy: one bar per group and edit with its interval, and the table of single concepts."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.report import tables
from efface.report.html import fragment
from efface.report.page import Page

ORDER = 30
TEMPLATE = """
<section>
<h2>Judged accuracy</h2>
<p class="soft">Share of images in which the judge names the concept first, with the 95 % interval (Wilson). The thin
line on a bar is that interval; the upright tick is the value before.</p>
<div class="scroll">
<table class="numbers">
<thead><tr><th>prompts</th><th>before</th>{% for column in page.columns %}<th>{{ column.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group in groups %}
<tr>
<th scope="row">{{ group.title }}<br><small>{{ group.n }} images{% if group.better %}, {{ group.better }} is better{% endif %}</small></th>
{% for bar in group.bars %}
<td>{% if bar %}<b>{{ bar.value|replace(' ', nbsp) }}</b> <small>{{ bar.range }}</small>
<svg class="bar" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{{ bar.value }}, interval {{ bar.range }}">
<rect x="0" y="3" width="100" height="8" fill="var(--track)"/>
<rect x="0" y="3" width="{{ bar.x }}" height="8" fill="var(--bar)"{% if loop.first %} opacity=".5"{% endif %}/>
<line x1="{{ bar.low }}" x2="{{ bar.high }}" y1="7" y2="7" stroke="var(--mark)" stroke-width="1.4" vector-effect="non-scaling-stroke"/>
{% if bar.mark is not none %}<line x1="{{ bar.mark }}" x2="{{ bar.mark }}" y1="0" y2="14" stroke="var(--mark)" stroke-width="2" vector-effect="non-scaling-stroke"/>{% endif %}
</svg>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if singles.rows %}
<details>
<summary>Every concept</summary>
<div class="scroll">
<table class="list">
<thead><tr>{% for cell in singles.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in singles.rows %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endif %}
</section>
"""  # noqa: E501


class Bar(NamedTuple):
    """A share as text, and the positions of its bar, interval and mark of the value before, 0 to 100."""

    value: str
    range: str
    x: float
    low: float
    high: float
    mark: float | None


class Bars(NamedTuple):
    """One row of the table."""

    title: str
    better: str
    n: int
    bars: list[Bar | None]


def render(page: Page) -> Markup:
    """Return the bars of all groups."""
    singles = tables.per_concept(page.records, [column.name for column in page.columns])
    groups = [_bars(name, page.records) for name in tables.present(page.records)]
    return fragment(TEMPLATE, page=page, groups=groups, singles=singles)


def _bars(name: str, records: Sequence[Scored]) -> Bars:
    before, after = tables.sides([record.summaries.get(name) for record in records])
    better = next((group.better for group in GROUPS if group.name == name), "")
    bars = [_bar(before, None), *(share and _bar(share, before) for share in after)]
    return Bars(tables.TITLES.get(name, name), better, before.n, bars)


def _bar(share: Share, before: Share | None) -> Bar:
    low, high = share.interval
    text, spread = tables.percent(share.value), f"{100 * low:.0f}–{100 * high:.0f}"
    mark = None if before is None else round(100 * before.value, 2)
    return Bar(text, spread, round(100 * share.value, 2), round(100 * low, 2), round(100 * high, 2), mark)
