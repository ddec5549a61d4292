"""Attacks: how often each brings the concept back, and the same seeds before, after and under attack.

One edit has a row for each attack, with every rate and the cost. Several edits have a row each, and a column for each
attack.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from efface.evaluation.summary import Share
from efface.report.bars import Bar, draw
from efface.report.html import fragment
from efface.report.page import CellImage, Column, Page, Strip
from efface.report.tables import percent

ORDER = 25
TEMPLATE = """
{% from "cells.html.j2" import cell %}
<section>
<h2>Under attack</h2>
{% if edits|length == 1 %}
<p class="soft">Share of plain prompts and seeds whose image shows the concept, by a judge that the attack did not ask:
without the attack, with it, and of those that fail without it. The literature calls each of them ASR.</p>
<div class="scroll">
<table class="numbers attacks">
<thead><tr><th>attack</th><th>without</th><th>with it</th><th>of the failing</th><th>cost</th></tr></thead>
<tbody>
{% for strip in edits[0].attacks %}
<tr>
<th scope="row">{{ strip.attack }}<br><small>on {{ edits[0].name }}</small></th>
<td>{{ draw(bar(strip.rates.pre)) }}</td>
<td>{{ draw(bar(after(strip))) }}</td>
<td>{% if strip.rates.post.n %}{{ draw(bar(strip.rates.post)) }}{% endif %}</td>
<td><small>{{ cost(strip) }}</small></td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p class="soft">Share of plain prompts and seeds whose image shows the concept under each attack, by a judge that the
attack did not ask; small: the share of those that fail without it. The literature calls both ASR.</p>
<div class="scroll">
<table class="numbers attacks several" style="min-width: {{ 180 + 150 * (names|length + 1) }}px">
<thead><tr><th>edit</th><th>without</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for edit in edits %}
<tr>
<th scope="row">{{ edit.name }}</th>
<td>{{ draw(bar(edit.attacks[0].rates.pre)) }}</td>
{% for strip in by_name(edit, names) %}
<td>{% if strip %}<span title="{{ cost(strip) }}">{{ draw(bar(after(strip))) }}</span>
{%- if strip.rates.post.n %}<small>{{ percent(strip.rates.post.value) }} of {{ strip.rates.post.n }}</small>{% endif %}
{%- endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if rows %}
<div class="scroll">
<table class="grid">
<thead><tr><th></th><th>original</th><th>edited</th>
{%- for name in heads %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.first %} class="first"{% endif %}>
<th scope="row">{{ row.title }}{% if row.title != row.edit %}<small>{{ row.edit }}</small>{% endif %}</th>
{% for images in row.cells %}
{{ cell(images, row.title, page.blurred) }}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</section>
"""
SEVERAL = 3  # images of a cell where there is a column for each attack


class Row(NamedTuple):
    """Hold a row of images: its title, the edit's name, whether it is an edit's first, and its cells."""

    title: str
    edit: str
    first: bool
    cells: list[Sequence[CellImage]]


def render(page: Page) -> Markup:
    """Return the table of rates and the strips, "" without attacks."""
    edits = [column for column in page.columns if column.attacks]
    if not edits:
        return Markup("")
    names = list(dict.fromkeys(strip.attack for column in edits for strip in column.attacks))
    one = len(edits) == 1
    rows = _rows(edits[0]) if one else [row for column in edits for row in _wide(column, names)]
    return fragment(
        TEMPLATE, page=page, edits=edits, names=names, heads=["under attack"] if one else names, rows=rows,
        draw=draw, bar=Bar.of, after=_after, cost=_cost, by_name=_by_name, percent=percent,
    )  # fmt: skip


def _rows(column: Column) -> list[Row]:
    shown = [strip for strip in column.attacks if strip.original]
    return [
        Row(strip.attack, column.name, i == 0, [strip.original, strip.edited, strip.attacked])
        for i, strip in enumerate(shown)
    ]


def _wide(column: Column, names: Sequence[str]) -> list[Row]:
    """Return an edit's row; attacks whose images before or after the edit are others have a further row."""
    groups: dict[object, dict[str, Strip]] = {}
    for strip in column.attacks:
        if strip.original:
            same = tuple(image.uri for image in (*strip.original, *strip.edited))
            groups.setdefault(same, {})[strip.attack] = strip
    found = []
    for i, strips in enumerate(groups.values()):
        any_one = next(iter(strips.values()))
        attacked = [strips[name].attacked if name in strips else () for name in names]
        cells = [images[:SEVERAL] for images in (any_one.original, any_one.edited, *attacked)]
        found.append(Row(column.name, column.name, i == 0, cells))
    return found


def _by_name(column: Column, names: Sequence[str]) -> list[Strip | None]:
    strips = {strip.attack: strip for strip in column.attacks}
    return [strips.get(name) for name in names]


def _after(strip: Strip) -> Share:
    return Share.of([row.after for row in strip.record.rows])


def _cost(strip: Strip) -> str:
    """Return the cost as "12 s, 960 calls, 480 texts"."""
    cost, seconds = strip.record.cost, strip.record.attacking
    parts = [f"{seconds.seconds:.0f} s"] if seconds else []
    parts += [f"{cost[name]:,.0f} {name}" for name in ("calls", "texts", "images") if cost.get(name)]
    return ", ".join(parts)
