"""How to reproduce the numbers: edits, judge, prompts, seeds, sampler, versions and commands."""

import json

from markupsafe import Markup

from efface.evaluation.record import Scored
from efface.report.html import fragment
from efface.report.page import Page
from efface.util.values import Value

ORDER = 50
TEMPLATE = """
<section>
<h2>How these numbers were made</h2>
{% if page.many %}<details><summary>The {{ edits | length }} edits</summary>{% endif %}
{% for column in page.columns %}
<details><summary>{{ column.name }}: the edit</summary><pre>{{ edits[loop.index0] }}</pre></details>
{% endfor %}
{% if page.many %}</details>{% endif %}
<details><summary>Judge, prompts, seeds, sampler, versions</summary><pre>{{ profile }}</pre></details>
{% if page.commands %}
<p>Commands that give the same numbers:</p>
<pre>{% for command in page.commands %}{{ command }}
{% endfor %}</pre>
{% endif %}
</section>
"""


def render(page: Page) -> Markup:
    """Return each record's edit, and the settings that all records share."""
    edits = [_pretty(record.edit, record) for record in page.records]
    first = page.records[0]
    parts: tuple[Value, ...] = (first.evaluator, first.sampling, first.model)
    return fragment(TEMPLATE, page=page, edits=edits, profile="\n".join(_pretty(part, None) for part in parts))


def _pretty(value: Value, record: Scored | None) -> str:
    """Return JSON with one line per entry, short lists on one line; with a record its versions and commit too."""
    entries = value.model_dump(mode="json")
    if record is not None:
        entries |= {"versions": record.versions, "git": record.git, "created": record.created}
    lines = [f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in entries.items()]
    return "{\n  " + ",\n  ".join(lines) + "\n}"
