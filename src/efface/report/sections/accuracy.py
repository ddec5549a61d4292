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
{% if page.many %}
<table class="numbers several" style="min-width: {{ 170 + 150 * groups|length }}px">
<thead><tr><th>edit</th>{% for group in groups %}<th>{{ group.title }}<br><small>{{ group.about }}</small></th>
{%- endfor %}</tr></thead>
<tbody>
{% for name in ["before"] + edits %}
{% set i = loop.index0 %}
<tr>
<th scope="row">{{ name }}</th>
{% for group in groups %}
<td>{% if group.bars[i] %}{{ draw(group.bars[i], pale=i == 0) }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% else %}
<table class="numbers">
<thead><tr><th>prompts</th><th>before</th>{% for column in page.columns %}<th>{{ column.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group in groups %}
<tr>
<th scope="row">{{ group.title }}<br><small>{{ group.about }}</small></th>
{% for bar in group.bars %}
<td>{% if bar %}{{ draw(bar, pale=loop.first) }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
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
    """One group of prompts: its title, its images and which way is better, and the bars before and after each edit."""

    title: str
    about: str
    bars: list[Bar | None]


def render(page: Page) -> Markup:
    """Return the bars of all groups."""
    edits = [column.name for column in page.columns]
    singles = tables.per_concept(page.records, edits)
    groups = [_bars(name, page.records) for name in tables.present(page.records)]
    return fragment(TEMPLATE, page=page, edits=edits, groups=groups, singles=singles, draw=draw)


def _bars(name: str, records: Sequence[Scored]) -> Bars:
    before, after = tables.sides([record.summaries.get(name) for record in records])
    better = next((group.better for group in GROUPS if group.name == name), "")
    bars = [Bar.of(before), *(share and Bar.of(share, before) for share in after)]
    about = f"{before.n} images" + f", {better} is better" * bool(better)
    return Bars(tables.TITLES.get(name, name), about, bars)
