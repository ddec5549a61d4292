"""What two benches must agree in."""

import json
from pathlib import Path

import pytest


def _results(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted([*root.glob("records/*.json"), *root.glob("attacks/*.json")]):
        record = json.loads(path.read_text())
        for key in ("erasing", "evaluating", "attacking", "created", "git"):
            record.pop(key, None)
        found[path.name] = record
    return found


@pytest.fixture
def results():
    """Return folder -> every record, without what differs between runs: seconds, memory, dates, commit."""
    return _results
