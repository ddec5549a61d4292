"""The attacks' tests use the digits model that is a lamp."""

import runpy
from pathlib import Path

lamp = runpy.run_path(str(Path(__file__).parents[1] / "digits" / "conftest.py"))["lamp"]
