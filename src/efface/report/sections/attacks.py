"""Attacks: how often each brings the concept back, and the same seeds before, after and under attack."""

from markupsafe import Markup

from efface.evaluation.summary import Share
from efface.report.bars import Bar, draw
from efface.report.html import fragment
from efface.report.page import Page

ORDER = 25
TEMPLATE = """
{% from "cells.html.j2" import cell %}
{% if attacked %}
<section>
<h2>Under attack</h2>
<p class="soft">Share of plain prompts and seeds whose image shows the concept, by a judge that the attack did not ask:
without the attack, with it, and of those that fail without it. The literature calls each of them ASR.</p>
<div class="scroll">
<table class="numbers attacks">
<thead><tr><th>attack</th><th>without</th><th>with it</th><th>of the failing</th><th>cost</th></tr></thead>
<tbody>
{% for column in page.columns %}{% for strip in column.attacks %}
<tr>
<th scope="row">{{ strip.attack }}<br><small>on {{ column.name }}</small></th>
<td>{{ draw(bar(strip.rates.pre)) }}</td>
<td>{{ draw(bar(after(strip))) }}</td>
<td>{% if strip.rates.post.n %}{{ draw(bar(strip.rates.post)) }}{% endif %}</td>
<td><small>{{ cost(strip) }}</small></td>
</tr>
{% endfor %}{% endfor %}
</tbody>
</table>
</div>
<div class="scroll">
<table class="grid">
<thead><tr><th></th><th>original</th><th>edited</th><th>under attack</th></tr></thead>
<tbody>
{% for column in page.columns %}{% for strip in column.attacks if strip.original %}
<tr{% if loop.first %} class="first"{% endif %}>
<th scope="row">{{ strip.attack }}<small>{{ column.name }}</small></th>
{% for images in (strip.original, strip.edited, strip.attacked) %}
{{ cell(images, strip.attack, page.blurred) }}
{% endfor %}
</tr>
{% endfor %}{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
"""


def render(page: Page) -> Markup:
    """Return the table of rates and the strips, "" without attacks."""
    attacked = any(column.attacks for column in page.columns)
    return fragment(TEMPLATE, page=page, attacked=attacked, draw=draw, bar=Bar.of, after=_after, cost=_cost)


def _after(strip) -> Share:
    return Share.of([row.after for row in strip.record.rows])


def _cost(strip) -> str:
    """Return the cost as "12 s, 960 calls, 480 texts"."""
    cost, seconds = strip.record.cost, strip.record.attacking
    parts = [f"{seconds.seconds:.0f} s"] if seconds else []
    parts += [f"{cost[name]:,.0f} {name}" for name in ("calls", "texts", "images") if cost.get(name)]
    return ", ".join(parts)
