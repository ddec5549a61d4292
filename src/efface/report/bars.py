"""A share as a bar with its interval."""

from typing import NamedTuple

from markupsafe import Markup

from efface.evaluation.summary import Share
from efface.report.html import fragment
from efface.report.tables import percent

TEMPLATE = """
<b>{{ bar.value|replace(' ', nbsp) }}</b> <small>{{ bar.range }}</small>
<svg class="bar" viewBox="0 0 100 14" preserveAspectRatio="none" role="img"
 aria-label="{{ bar.value }}, interval {{ bar.range }}">
<rect x="0" y="3" width="100" height="8" fill="var(--track)"/>
<rect x="0" y="3" width="{{ bar.x }}" height="8" fill="var(--bar)"{% if pale %} opacity=".5"{% endif %}/>
<line x1="{{ bar.low }}" x2="{{ bar.high }}" y1="7" y2="7" stroke="var(--mark)" stroke-width="1.4"
 vector-effect="non-scaling-stroke"/>
{% if bar.mark is not none %}<line x1="{{ bar.mark }}" x2="{{ bar.mark }}" y1="0" y2="14" stroke="var(--mark)"
 stroke-width="2" vector-effect="non-scaling-stroke"/>{% endif %}
</svg>
"""


class Bar(NamedTuple):
    """A share as text, and the positions of its bar, interval and mark of the value before, 0 to 100."""

    value: str
    range: str
    x: float
    low: float
    high: float
    mark: float | None = None

    @classmethod
    def of(cls, share: Share, before: Share | None = None) -> "Bar":
        """Return the bar of a share, with a mark at the share before."""
        low, high = share.interval
        text, spread = percent(share.value), f"{100 * low:.0f}–{100 * high:.0f}"
        mark = None if before is None else round(100 * before.value, 2)
        return cls(text, spread, round(100 * share.value, 2), round(100 * low, 2), round(100 * high, 2), mark)


def draw(bar: Bar, pale: bool = False) -> Markup:
    """Return the text of a bar and the bar itself."""
    return fragment(TEMPLATE, bar=bar, pale=pale)
