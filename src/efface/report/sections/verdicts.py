"""Verdicts: one card per edit."""

from markupsafe import Markup

from efface.report.html import fragment
from efface.report.page import Page
from efface.report.verdict import verdicts

ORDER = 10
TEMPLATE = """
{% if page.many %}<details><summary>In words</summary>{% endif %}
<section class="verdicts">
{% for column in page.columns %}
<div class="card">
<h3>{{ column.name }}</h3>
<p class="soft">{{ column.summary }}</p>
<ul>
{% for verdict in found[loop.index0] %}
<li class="{{ verdict.tone }}">{{ verdict.text[0]|upper }}{{ verdict.text[1:] }}.<small>
{{- verdict.numbers[0]|upper }}{{ verdict.numbers[1:]|replace(" %", nbsp ~ "%") }}.</small></li>
{% endfor %}
</ul>
</div>
{% endfor %}
</section>
{% if page.many %}</details>{% endif %}
"""


def render(page: Page) -> Markup:
    """Return the cards."""
    return fragment(TEMPLATE, page=page, found=[verdicts(record) for record in page.records])
