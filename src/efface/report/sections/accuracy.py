"""Judged accuracy: one bar per group and edit with its interval, and the table of single concepts."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Scored
from efface.report import tables
from efface.report.bars import Bar, draw
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
<td>{% if bar %}{{ draw(bar, pale=loop.first) }}{% endif %}</td>
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
    return fragment(TEMPLATE, page=page, groups=groups, singles=singles, draw=draw)


def _bars(name: str, records: Sequence[Scored]) -> Bars:
    before, after = tables.sides([record.summaries.get(name) for record in records])
    better = next((group.better for group in GROUPS if group.name == name), "")
    bars = [Bar.of(before), *(share and Bar.of(share, before) for share in after)]
    return Bars(tables.TITLES.get(name, name), better, before.n, bars)
