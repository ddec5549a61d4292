"""The same prompts and seeds before and after: one row of images per prompt, one column per model."""

from markupsafe import Markup

from efface.report.html import fragment
from efface.report.page import Page

ORDER = 20
TEMPLATE = """
{% from "cells.html.j2" import cell %}
{% if page.lines %}
<section>
<h2>The same prompts and seeds</h2>
<p class="soft">Under each image: the judge's first name, in bold when it is what the prompt asks for.</p>
<div class="scroll">
<table class="grid">
<thead><tr><th></th><th>original</th>{% for column in page.columns %}<th>{{ column.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in page.lines %}
<tr{% if loop.first or line.group != loop.previtem.group %} class="first"{% endif %}>
<th scope="row">{{ line.prompt }}<small>{{ line.group }}</small></th>
{% for images in line.cells %}
{{ cell(images, line.prompt, page.blurred) }}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
"""


def render(page: Page) -> Markup:
    """Return the table of images, "" without any."""
    return fragment(TEMPLATE, page=page)
