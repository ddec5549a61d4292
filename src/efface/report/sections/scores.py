"""Scores of the metrics: means over the images of each group, and scores of the edit as a whole."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from efface.evaluation.record import Scored
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
    found, groups = page.records, tables.present(page.records)
    rows = [_means(found, name, group) for name in _labels(r.scored for r in found) for group in groups]
    rows += [_sets(found, name, group) for name in _labels(r.sets for r in found) for group in groups]
    rows += [_whole(found, name) for name in _labels(r.whole for r in found)]
    return fragment(TEMPLATE, page=page, rows=[row for row in rows if any(row[2:])])


def _labels(of_each: Iterable[Iterable[str]]) -> list[str]:
    return sorted({label for labels in of_each for label in labels})


def _means(records: Sequence[Scored], metric: str, group: str) -> list[str]:
    found = [record.mean(metric, group) for record in records]
    cells = ["" if mean is None else f"{mean.value:.3f} ± {mean.error:.3f}" for mean in found]
    return [metric, tables.TITLES.get(group, group), *cells]


def _sets(records: Sequence[Scored], metric: str, group: str) -> list[str]:
    found = [record.sets.get(metric, {}).get(group) for record in records]
    cells = ["" if score is None else f"{score.value:.4g} (n = {score.n})" for score in found]
    return [metric, tables.TITLES.get(group, group), *cells]


def _whole(records: Sequence[Scored], metric: str) -> list[str]:
    cells = [f"{record.whole[metric]:.4g}" if metric in record.whole else "" for record in records]
    return [metric, "", *cells]
