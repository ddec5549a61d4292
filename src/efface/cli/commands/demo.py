"""`efface demo`: one page about one concept."""

from efface.cli.measure import demo as run

ORDER = 90

__all__ = ["ORDER", "run"]
