"""`efface list`: what there is."""

from efface.cli.listing import show as run

ORDER = 80

__all__ = ["ORDER", "run"]
