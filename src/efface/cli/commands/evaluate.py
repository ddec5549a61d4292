"""`efface evaluate`: evaluate an edit."""

from efface.cli.measure import evaluate as run

ORDER = 40

__all__ = ["ORDER", "run"]
