"""Imports go one way only, are quick, and public names are declared."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import efface
from efface import registry

ROOT = Path(efface.__file__).parent

# Each layer imports from itself and from the layers above it in this list only. A name is a module or a package.
LAYERS = (
    "errors",
    "util",
    "concept registry",
    "query context",
    "edits",
    "models mini digits",
    "training exporting",
    "method attack metric judge criterion finding export",
    "methods attacks metrics judges exports",
    "evaluation inspection",
    "report",
    "api cli __main__",
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def _name(path: Path) -> str:
    """Return "models.files.load" for src/efface/models/files/load.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in FILES}


def _imports(path: Path) -> set[str]:
    """Return the efface modules that a file imports anywhere: at its top, inside functions, and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    inside = {name.removeprefix("efface.") for name in found if name.startswith("efface.")}
    packages = {name for name in inside if name in MODULES and MODULES[name].name == "__init__.py"}
    return (inside & set(MODULES)) - packages - {_name(path)}


def _rank(module: str) -> int:
    parts = module.split(".")
    known = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
    return next(RANK[name] for name in known if name in RANK)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_one_way(path: Path):
    own = _name(path)
    for module in sorted(_imports(path)):
        assert _rank(module) <= _rank(own), f"{own} must not import {module}"


def test_there_are_no_import_cycles():
    graph = {_name(path): _imports(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("kind", registry.KINDS)
def test_no_plug_in_imports_another(kind: str):
    plug_ins = {f"{kind}.{name}" for name in registry.names(kind)}
    for name in sorted(plug_ins):
        module = name if name in MODULES else f"models.{name}"
        assert not _imports(MODULES[module]) & (plug_ins - {name}), f"{name} imports another of {kind}"


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
        if path.is_relative_to(ROOT / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"print", "torch.load", "torch.save", "torch.manual_seed"}, (
                    f"{path.name}: {called}"
                )
            if isinstance(node, ast.Import):
                assert all(alias.name != "pickle" for alias in node.names), path.name
