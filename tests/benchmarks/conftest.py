"""The benches come with a clone only; their modules are found by name here."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
if FOLDER.is_dir():
    sys.path.append(str(FOLDER))
else:
    collect_ignore_glob = ["test_*.py"]
