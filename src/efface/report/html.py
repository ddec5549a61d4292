"""HTML from Jinja templates, with every value escaped."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NBSP = "\N{NO-BREAK SPACE}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("efface.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["nbsp"] = NBSP
    return made


def fragment(template: str, **values: Any) -> Markup:
    """Fill a section's template; values are escaped."""
    return Markup(_environment().from_string(template.lstrip("\n")).render(**values))


def page(**values: Any) -> str:
    """Fill the template of a whole page."""
    return _environment().get_template("template.html.j2").render(**values)
