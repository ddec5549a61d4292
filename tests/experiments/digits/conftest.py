"""The experiment's tests use the untrained digits model."""

import runpy
from pathlib import Path

raw = runpy.run_path(str(Path(__file__).parents[2] / "digits" / "conftest.py"))["raw"]
