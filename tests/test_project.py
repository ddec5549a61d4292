"""The project's files: versions agree, code in README and CONTRIBUTING runs, the docs list every method."""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface import Edit, registry
from efface.cli import fields, literals, plugins
from efface.cli.app import names
from efface.cli.commands import erase
from efface.cli.fields import PACKAGE
from efface.errors import BadInput
from efface.models.model import Model

ROOT = Path(__file__).parent.parent


def code(name: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d\S*)\]", changelog, re.MULTILINE)[0] == efface.__version__
    assert f"version: {efface.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_public_names_exist_and_have_docstrings() -> None:
    for name in efface.__all__:
        assert getattr(efface, name).__doc__, name
    assert sorted(efface.__all__) == efface.__all__


def test_contributing_method_works(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the method of CONTRIBUTING as a file of methods/, and check the two identities that it names."""
    path = tmp_path / "project.py"
    path.write_text(code("CONTRIBUTING.md")[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("efface.methods.project", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "efface.methods.project", module)
    spec.loader.exec_module(module)
    method: Any = module.Project
    edit = method()(tiny, ["church", "house"])
    assert edit.meta["method"] == "project"
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors") == edit
    word = tiny.encode(["church"]).tokens[0, tiny.tokens("church").subject]
    for name, change in edit.dense(tiny).items():
        after = (tiny.weights()[name].double() + change.double()) @ word.double()
        assert after.norm() < 1e-5 * word.norm()
    none = method(share=0.0)(tiny, ["church"])
    assert all(torch.equal(change, torch.zeros_like(change)) for change in none.dense(tiny).values())
    assert len(code("CONTRIBUTING.md")[0].splitlines()) <= 30
    methods = tmp_path / "efface" / "methods"  # the command is made from the file alone
    methods.mkdir(parents=True)
    (methods / "project.py").write_text(code("CONTRIBUTING.md")[0], encoding="utf-8")
    monkeypatch.setattr(fields, "PACKAGE", tmp_path / "efface")
    fields.sheet.cache_clear()
    try:
        command = plugins.command("methods", "project", erase.flags, erase.run)
        flags = {flag for option in command.params for flag in option.opts}
        assert {"--share", "--strength", "--preserve"} <= flags
        line = next(one for one in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if "erase project" in one)
        assert set(re.findall(r"--\w+", line)) <= flags
        text = (methods / "project.py").read_text().replace("share: float", "strength: float")
        (methods / "project.py").write_text(text)
        literals.tree.cache_clear()
        fields.sheet.cache_clear()
        with pytest.raises(BadInput, match="has a field strength, but --strength is a flag of every command"):
            plugins.command("methods", "project", erase.flags, erase.run)
    finally:
        literals.tree.cache_clear()
        fields.sheet.cache_clear()


def test_code_in_the_documentation_compiles() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    for page in pages:
        for block in code(str(page.relative_to(ROOT))):
            compile(block, str(page), "exec")


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/models.md", "CONTRIBUTING.md"])
def test_commands_in_the_documentation_exist(name: str) -> None:
    known = names()
    for line in re.findall(r"^efface (\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        assert line in known, line


def test_links_in_the_documentation_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "design").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if not link.endswith(".png"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_data_files_ship() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "report" / "template.html.j2").is_file()


def test_optional_packages_are_not_core() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = " ".join(project["dependencies"])
    assert not re.search("torchvision|gradio|ray|pytest", core)
    assert set(project["optional-dependencies"]) == {"eval", "mini", "nudenet", "lora", "ray", "docs", "dev"}


def test_every_core_package_is_imported_by_the_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {"pillow": "PIL"}
    core = [re.split(r"[<>=!~\[ ;]", line)[0] for line in project["dependencies"]]
    imported: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    unused = [name for name in core if modules.get(name, name) not in imported]
    assert not unused


def test_every_extra_has_a_package_that_is_used() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"app", "cluster"}.isdisjoint(extras)
    assert any(line.startswith("psutil") for line in extras["dev"])  # benchmarks/ and a slow test measure memory


def test_docs_page_lists_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.methods()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == registry.names("methods")
    assert "church" in hooks.concepts()


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="benchmarks/ comes with a clone only")
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_benchmarks_import_exists(path: Path):
    """They are not run by the tests, and a name that has moved would only be missed in the next run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("efface", "experiments"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                found = hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
                assert found, f"{path.name} imports {name.name} from {node.module}"
