"""`efface list`: methods, attacks, metrics, judges, models, concepts."""

from efface.cli.listing import show as run

ORDER = 80

__all__ = ["ORDER", "run"]
