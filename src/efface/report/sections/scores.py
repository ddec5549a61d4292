"""Scores of the metrics: means over the images of each group, and scores of the edit as a whole."""

from markupsafe import Markup

from efface.report import tables
from efface.report.html import fragment
from efface.report.page import Page

ORDER = 35
TEMPLATE = """
{% if rows %}
<section>
<h2>Other metrics</h2>
<p class="soft">Means over the edited images of a group, ± the standard error; with n, of all images of a group at once;
numbers without either are of the edit as a whole.</p>
<div class="scroll">
<table class="list">
<thead><tr><th>metric</th><th>prompts</th>
{%- for column in page.columns %}<th>{{ column.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in rows %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
"""


def render(page: Page) -> Markup:
    """Return the table of every metric in some record."""
    rows = tables.scores(page.records, [column.name for column in page.columns]).rows
    return fragment(TEMPLATE, page=page, rows=rows)
