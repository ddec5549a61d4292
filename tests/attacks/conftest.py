"""Fixtures: the analytic digits model."""

import runpy
from pathlib import Path

lamp = runpy.run_path(str(Path(__file__).parents[1] / "digits" / "conftest.py"))["lamp"]
