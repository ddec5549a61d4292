"""`efface digits`: the experiment on digits."""

from efface.cli.digits import app

ORDER = 100

__all__ = ["ORDER", "app"]
