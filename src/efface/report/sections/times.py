"""Time of each step."""

from markupsafe import Markup

from efface.report.html import fragment
from efface.report.page import Page

ORDER = 40
TEMPLATE = """
{% if page.times %}
<section>
<h2>Time</h2>
<table class="list"><tbody>
{% for what, seconds in page.times %}<tr><td>{{ what }}</td><td>{{ seconds }}</td></tr>
{% endfor %}
</tbody></table>
</section>
{% endif %}
"""


def render(page: Page) -> Markup:
    """Return the table of times, "" without any."""
    return fragment(TEMPLATE, page=page)
