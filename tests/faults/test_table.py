"""Every wrong command line and Python call: one line with its message, exit code 2, nothing written."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TABLE = Path(__file__).with_name("table.py")
TOOLS: dict[str, Any] = runpy.run_path(str(TABLE))
ROWS: list[Any] = TOOLS["all_rows"]()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a working folder with the files that rows name."""
    folder = tmp_path_factory.mktemp("faults")
    TOOLS["furnish"](folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of other libraries; what reaches standard error counts
@pytest.mark.parametrize("category", sorted({row.category for row in ROWS}))
def test_wrong_commands_end_in_one_line(category: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    monkeypatch.chdir(place)
    before, wrong = sorted(place.rglob("*")), []
    for row in (row for row in ROWS if row.category == category):
        how, code, said = TOOLS["answer"](row.args)
        if (how, code) != ("line", 2) or not re.search(row.says, said) or len(said) > 1000:
            wrong.append(f"{how}, code {code}: {' '.join(row.args)[:200]}\n    {said[:300]}")
        if sorted(place.rglob("*")) != before:
            pytest.fail(f"written by: {' '.join(row.args)[:200]}")
    assert not wrong, "\n".join(wrong)


def test_the_table_is_large_and_covers_every_command():
    from efface.cli.app import names

    assert len(ROWS) > 300
    assert {row.args[0] for row in ROWS} >= set(names())


def test_wrong_python_calls_are_refused_by_name(tmp_path: Path):
    """In a process of its own: the tests' type checks would refuse these calls before efface does."""
    done = subprocess.run(
        [sys.executable, str(TABLE), "--calls"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for source, says in TOOLS["CALLS"].items():
        how, said = found[source]
        assert how == "line", f"{source}: {how} {said}"
        assert re.search(says, said), f"{source}: {said}"
    assert {source: found[source][0] for source in TOOLS["TAKEN"]} == dict.fromkeys(TOOLS["TAKEN"], "accepted")
