"""Values read from source equal those that Python computes."""

import ast
from pathlib import Path
from typing import Any

import pytest

from efface.cli import literals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("-3", -3),
        ("1 / 4", 0.25),
        ("2**10 - 1", 1023),
        ("('a', *B)", ("a", "b", "c")),
        ("{'x': dict(lr=N), **{'y': {}}}", {"x": {"lr": 3}, "y": {}}),
        ("field(default=N)", 3),
        ("field(default_factory=list)", None),
        ("frozenset()", None),
        ("unknown", None),
        ("1 / 0", None),
        ("LOOP", None),
    ],
)
def test_value(text: str, expected: Any) -> None:
    known = {"B": "('b', 'c')", "N": "3", "LOOP": "LOOP"}
    nodes = {name: ast.parse(value, mode="eval").body for name, value in known.items()}
    assert literals.value(ast.parse(text, mode="eval").body, nodes) == expected


def test_names_are_followed_through_imports(tmp_path: Path) -> None:
    folder = tmp_path / "methods"
    (folder / "shared").mkdir(parents=True)
    (folder / "shared" / "values.py").write_text("ONE = 1\nTWO: int = ONE + 1\n")
    (folder / "own.py").write_text("from efface.methods.shared.values import TWO as DEUX\nimport os\nX = DEUX * 5\n")
    found = literals.names(literals.tree(folder / "own.py"), folder)
    assert literals.value(found["X"], found) == 10
    assert "os" not in found
