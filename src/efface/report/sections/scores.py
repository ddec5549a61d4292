"""Scores of the metrics: means over the images of each group, and scores of the edit as a whole."""

from markupsafe import Markup

from efface import registry
from efface.evaluation.record import Scored
from efface.report import tables
from efface.report.html import fragment
from efface.report.page import Page

ORDER = 35
TEMPLATE = """
{% if rows %}
<section>
<h2>Other metrics</h2>
<p class="soft">Means over the edited images of a group, ± the standard error; numbers without one
are of the edit as a whole.</p>
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
    names = registry.names("metrics")
    rows = [_means(page.records, name, group) for name in names for group in tables.present(page.records)]
    rows += [_whole(page.records, name) for name in names]
    return fragment(TEMPLATE, page=page, rows=[row for row in rows if any(row[2:])])


def _means(records: list[Scored], metric: str, group: str) -> list[str]:
    found = [record.mean(metric, group) for record in records]
    cells = ["" if mean is None else f"{mean.value:.3f} ± {mean.error:.3f}" for mean in found]
    return [metric, tables.TITLES.get(group, group), *cells]


def _whole(records: list[Scored], metric: str) -> list[str]:
    cells = [f"{record.whole[metric]:.4g}" if metric in record.whole else "" for record in records]
    return [metric, "", *cells]
