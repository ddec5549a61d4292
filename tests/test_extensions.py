"""Every kind of extension is one new file: it is written into a copy of the package, found, and used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import efface

ROOT = Path(efface.__file__).parent


class Extension(NamedTuple):
    """A throw-away extension: where its one file goes, what it says, and a script that finds and uses it."""

    file: str
    source: str
    script: str


DATACLASS = "from dataclasses import dataclass\n"
EXTENSIONS = {
    "method": Extension(
        "methods/throwaway.py",
        f'''"""Throw-away: changes nothing."""

{DATACLASS}
from efface.edits.edit import Edit
from efface.method import Method


@dataclass(frozen=True)
class Throwaway(Method):
    """Change nothing.

    amount: of no effect
    """

    amount: float = 1.0

    def fit(self, model, erase, keep, seed):
        return Edit()
''',
        """
assert registry.get("methods", "throwaway")().amount == 1.0
assert "throwaway" in run("list", "methods") and "--amount" in run("erase", "throwaway", "--help")
""",
    ),
    "attack": Extension(
        "attacks/throwaway.py",
        f'''"""Throw-away: finds what it was given."""

{DATACLASS}
from efface.attack import Attack, Finding


@dataclass(frozen=True)
class Throwaway(Attack):
    """Return the queries."""

    def search(self, target, concept, queries, seed):
        return Finding(queries)
''',
        """
import efface
from efface.attack import Target
from efface.query import Query
found = registry.get("attacks", "throwaway")()(Target(efface.load("digits:mnist")), "7", Query("7"))
assert found.queries == (Query("7"),) and found.meta["attack"] == "throwaway" and "throwaway" in run("list", "attacks")
""",
    ),
    "metric": Extension(
        "metrics/throwaway.py",
        f'''"""Throw-away: how bright an image is."""

{DATACLASS}
from efface.metric import Metric


@dataclass(frozen=True)
class Throwaway(Metric):
    """Return the mean of each image."""

    def measure(self, samples):
        return samples.images.mean((1, 2, 3))
''',
        """
import torch
from efface.metric import Samples
assert registry.get("metrics", "throwaway")()(Samples(torch.ones(2, 3, 4, 4))).tolist() == [1.0, 1.0]
assert "throwaway" in run("list", "metrics")
""",
    ),
    "judge": Extension(
        "judges/throwaway.py",
        '''"""Throw-away: sees the same in every image."""

from efface.judge import Judge, Profile


class Throwaway(Judge):
    """Judge the model "nowhere"."""

    MODELS = ("nowhere",)
    classes = ("church",)
    profile = Profile(evaluator="throwaway")

    def objects(self, images):
        return images.new_ones(len(images), 1)

    @classmethod
    def load(cls, model, name=""):
        return cls()
''',
        """
from efface.judge import judge_of
assert judge_of("nowhere").index("church") == 0 and "throwaway" in run("list", "judges")
""",
    ),
    "family": Extension(
        "models/families/throwaway.py",
        '''"""Throw-away: Stable Diffusion under another name."""

from typing import ClassVar

from efface.models.unet_family import UNetFamily


class Throwaway(UNetFamily):
    """View a pipeline that says so itself."""

    TITLE: ClassVar[str] = "the throw-away family"

    @classmethod
    def owns(cls, pipe):
        return getattr(pipe, "throwaway", False)

    def encode(self, prompts):
        raise AssertionError(prompts)

    def streams(self, prompt):
        raise AssertionError(prompt)
''',
        """
from types import SimpleNamespace
from efface.models.family import family_of
assert family_of(SimpleNamespace(throwaway=True)).TITLE == "the throw-away family"
""",
    ),
    "format of export": Extension(
        "exports/throwaway.py",
        f'''"""Throw-away: a file with the edit's id."""

{DATACLASS}
from efface.export import Export
from efface.exporting.report import Verified, Written


@dataclass(frozen=True)
class Throwaway(Export):
    """Write the id."""

    def write(self, edit, base, values, out):
        out.write_text(edit.id)
        return Written()

    def verify(self, edit, base, values, out, written, compare):
        return Verified(dict.fromkeys(edit.names, 0.0), 0.0, ("the id",))
''',
        """
import efface, os, tempfile
from pathlib import Path
os.environ["EFFACE_HOME"] = tempfile.mkdtemp()
path = Path(os.environ["EFFACE_HOME"], "church.safetensors")
edit = efface.erase(efface.load("mini"), "church")
edit.save(path)
out = path.with_name("out.safetensors")
assert "as throwaway" in run("export", str(path), "--to", "throwaway", "-o", str(out)) and out.read_text() == edit.id
assert "throwaway" in run("list", "exports")
""",
    ),
    "protocol": Extension(
        "protocols/throwaway.toml",
        """title = "Throw-away: one object"
paper = "none"
table = "000 table 0"

[mini]
concepts = [{kind = "object", count = 1}]
methods = ["uce"]
""",
        """
from efface.evaluation import protocol
assert len(protocol.read(protocol.find("throwaway")).concepts) == 1
assert "000 table 0" in run("list", "protocols")
""",
    ),
    "report section": Extension(
        "report/sections/throwaway.py",
        '''"""Throw-away: one sentence."""

ORDER = 99


def render(page):
    """Return a sentence."""
    return "<p>thrown away</p>"
''',
        """
from efface.report.page import sections
assert sections()[-1].render(None) == "<p>thrown away</p>"
""",
    ),
    "command": Extension(
        "cli/commands/throwaway.py",
        '''"""`efface throwaway`."""

import typer

ORDER = 99


def run() -> None:
    """Say a word."""
    typer.echo("away")
''',
        """
assert run("throwaway") == "away\\n" and "throwaway" in run("--help")
""",
    ),
}
RUN = """
import contextlib, io, json, sys, traceback
from efface import registry
from efface.cli.app import run as command

def run(*args):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command(list(args))
    return out.getvalue()

found = {}
for kind, script in json.load(sys.stdin).items():
    try:
        exec(script, {"registry": registry, "run": run})
        found[kind] = ""
    except BaseException:
        found[kind] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Add every extension to a copy of the package, whose large files are links, and run their scripts in one process.

    Returns each script's traceback, "" for none.
    """
    root = tmp_path_factory.mktemp("copy") / "efface"
    for path in sorted(ROOT.rglob("*")):
        copy = root / path.relative_to(ROOT)
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            shutil.copyfile(path, copy)
        else:
            copy.symlink_to(path)
    for extension in EXTENSIONS.values():
        (root / extension.file).write_text(extension.source, encoding="utf-8")
    scripts = json.dumps({kind: extension.script for kind, extension in EXTENSIONS.items()})
    environment = {**os.environ, "PYTHONPATH": str(root.parent)}
    done = subprocess.run([sys.executable, "-c", RUN], input=scripts, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_one_new_file_is_a_new_extension(outcome: dict[str, str], kind: str):
    assert outcome[kind] == ""
