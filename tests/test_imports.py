"""The package imports one way only, is quick to import, and says what is public."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import efface

ROOT = Path(efface.__file__).parent

# Each layer imports from itself and from the layers above it in this list only.
LAYERS = (
    "errors progress files concept registry query solver stats checkpoint",
    "guard algebra provenance editfile edit views identity text",
    "sampling vocabulary singlefile loading attach attention model method attack api",
    "methods attacks metrics",
    "judge store streaming evaluate plan bench mini digits",
    "report cli app demo __main__",
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
OTHER = RANK["store"]  # where a module belongs that is not named above


def _home(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(path: Path) -> set[str]:
    """Return the efface modules a file imports when it is itself imported (not inside functions or for types only)."""
    found = set()
    waiting: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.ImportFrom) and node.module == "efface":
            found |= {f"efface.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efface."):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("efface")}
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            waiting += node.body
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    for module in _imports(path):
        home = _home(module)
        if (ROOT / home).is_dir() or (ROOT / f"{home}.py").is_file():  # else a name of the package, as __version__
            assert RANK.get(home, OTHER) <= RANK.get(own, OTHER), f"{own} must not import {home}"


@pytest.mark.parametrize("kind", ["methods", "attacks", "metrics"])
def test_no_plug_in_imports_another(kind: str):
    for path in (ROOT / kind).glob("*.py"):
        for module in _imports(path):
            if module.startswith(f"efface.{kind}."):
                assert module.rpartition(".")[2].startswith("_"), f"{path.name} imports {module}"


def test_all_is_sorted_complete_and_documented():
    assert sorted(efface.__all__) == efface.__all__
    for name in efface.__all__:
        assert getattr(efface, name).__doc__, name
        assert name in dir(efface)
    assert {"load", "erase", "Edit", "Query", "Concept", "Model"} <= set(efface.__all__)
    assert set(efface._HOMES) == set(efface.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efface.nothing


def test_importing_the_package_imports_no_heavy_library():
    script = """
import sys
import efface
assert efface.__version__ and dir(efface)
efface.Concept("church"), efface.EffaceError
heavy = {"torch", "numpy", "diffusers", "transformers", "jaxtyping"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT.parent)})


def test_no_pickle_no_print_and_no_global_seed_in_the_library():
    for path in FILES:
        if path.is_relative_to(ROOT / "cli") or path.is_relative_to(ROOT / "mini"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "torch.load", "torch.save", "torch.manual_seed"}, (
                    f"{path.name}: {called}"
                )
            if isinstance(node, ast.Import):
                assert all(alias.name != "pickle" for alias in node.names), path.name
