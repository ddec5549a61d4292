"""The commands end to end on a random tiny model, and every refusal: one line, exit code 2, nothing written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import efface
from efface import Edit, registry
from efface.cli import commands
from efface.cli.app import names, run
from efface.evaluation.record import read
from efface.judge import Judge, Profile
from efface.models.model import Model

NAMES = ("church", "house", "castle", "guitar", "dog", "wolf")
Invoke = Callable[..., tuple[int, str, str]]


class Random(Judge):
    """A judge that is a fixed random linear map."""

    classes, styles, profile = NAMES, ("plain", "neon"), Profile(evaluator="random")

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        maps = torch.randn(3 * 16 * 16, len(NAMES), generator=torch.Generator().manual_seed(0))
        return ((images - 0.5).flatten(1) @ maps).softmax(dim=1)

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        return self.objects(images)[:, :2]


@pytest.fixture
def work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with the model `tiny` in it, a store, and the judge above."""
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny").symlink_to(folder)
    known = tmp_path / "known"
    shutil.copytree(folder, known)
    objects = [{"name": n, "kind": "object", "family": "", "related": [], "keywords": ["red"]} for n in NAMES]
    objects[0] |= {"related": ["house", "castle"], "held_out_keywords": ["blue moon"]}
    objects[4]["family"] = objects[5]["family"] = "animal"
    styles = [{"name": "neon", "kind": "style", "related": [], "keywords": []}]
    (known / "concepts.json").write_text(json.dumps({"objects": objects, "styles": styles}))
    monkeypatch.setattr("efface.judge.judge_of", lambda model, name="": Random())
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def invoke(work: Path, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command line; return (exit code, standard output, standard error)."""

    def go(*args: object) -> tuple[int, str, str]:
        code = run([str(arg) for arg in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return go


def opened(name: str) -> Image.Image:
    with Image.open(name) as image:
        image.load()
    return image


ERASE = ("erase", "uce", "church", "--preserve", "house", "castle", "--model", "../tiny", "-o", "church.safetensors")


def test_erase_writes_an_edit_that_says_how_it_was_made(invoke: Invoke, work: Path) -> None:
    code, out, err = invoke(*ERASE, "--ridge", "0.25", "--preset", "repo-2025", "--anchor", "building", "--seed", 3)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "church.safetensors"
    meta: Any = Edit.load("church.safetensors").meta
    assert meta["fields"]["ridge"] == 0.25
    assert [c["name"] for c in meta["preserve"]] == ["house", "castle"]
    assert meta["erase"] == [{"name": "church", "anchor": "building"}]
    assert meta["seed"] == 3


def test_erase_equals_the_python_call(invoke: Invoke, tiny: Model) -> None:
    invoke(*ERASE)
    edit = efface.erase(tiny, "church", preserve=["house", "castle"])
    assert Edit.load("church.safetensors") == edit


@pytest.mark.slow
def test_names_come_from_the_table(invoke: Invoke) -> None:
    code, _, _ = invoke("erase", "uce", "neon", "--model", "../known", "-o", "neon.safetensors")
    assert code == 0
    meta: Any = Edit.load("neon.safetensors").meta
    assert meta["erase"][0]["kind"] == "style"
    invoke("erase", "uce", "animal", "church", "--model", "../known", "-o", "two.safetensors")
    meta = Edit.load("two.safetensors").meta
    assert [c["name"] for c in meta["erase"]] == ["dog", "wolf", "church"]


def test_generate(invoke: Invoke, work: Path) -> None:
    few = ("--model", "../tiny", "--steps", 2)
    code, out, _ = invoke("generate", "a church", *few, "-o", "one.png")
    assert code == 0
    assert opened("one.png").size == (16, 16)
    assert "generated 1 image with" in out
    invoke(*ERASE)
    code, _, _ = invoke(
        "generate", "a church", "a house", *few, "--seeds", "0:2", "--edit", "church.safetensors", "-o", "a.png"
    )
    assert code == 0
    assert opened("a.png").width > 2 * 128
    assert sorted(p.suffix for p in work.iterdir()) == [".png", ".png", ".safetensors"]


@pytest.mark.slow
def test_edits_of_generate_add_up(invoke: Invoke) -> None:
    invoke(*ERASE)
    few = ("generate", "a church", "--model", "../tiny", "--steps", 2)
    half = "0.5*church.safetensors"
    invoke(*few, "--edit", half, half, "-o", "halves.png")
    invoke(*few, "--edit", "church.safetensors", "-o", "whole.png")
    invoke(*few, "-o", "none.png")
    assert opened("halves.png").tobytes() == opened("whole.png").tobytes()
    assert opened("none.png").tobytes() != opened("whole.png").tobytes()


def test_compare(invoke: Invoke) -> None:
    invoke(*ERASE)
    code, out, _ = invoke(
        "compare", "a church", "a house", "--edit", "church.safetensors", "--edit", "0.5*church.safetensors",
        "--model", "../tiny", "--seeds", "0,5", "--steps", 2, "-o", "c.png",
    )  # fmt: skip
    assert code == 0
    assert "2 edits on 2 prompts × 2 seeds" in out
    assert opened("c.png").width > 3 * 2 * 128


def test_combine(invoke: Invoke) -> None:
    invoke(*ERASE)
    code, _, _ = invoke("combine", "2*church.safetensors - church.safetensors", "-o", "same.safetensors")
    assert code == 0
    whole, same = Edit.load("church.safetensors"), Edit.load("same.safetensors")
    assert same.names == whole.names


def test_stream_gives_the_same_edit(invoke: Invoke) -> None:
    invoke(*ERASE)
    code, _, err = invoke(*ERASE[:-1], "streamed.safetensors", "--stream")
    assert (code, err) == (0, "")
    one, two = Edit.load("church.safetensors"), Edit.load("streamed.safetensors")
    assert one.maps[0].names == two.maps[0].names
    product = [edit.maps[0].left @ edit.maps[0].right for edit in (one, two)]
    assert torch.allclose(*product, atol=1e-6)


@pytest.mark.slow
def test_export_writes_a_model_that_draws_the_edited_images(invoke: Invoke, work: Path) -> None:
    invoke(*ERASE)
    code, _, err = invoke("export", "church.safetensors", "--model", "../tiny", "-o", "erased")
    assert (code, err) == (0, "")
    few = ("generate", "a church", "--steps", 2)
    invoke(*few, "--model", "../tiny", "--edit", "church.safetensors", "-o", "a.png")
    invoke(*few, "--model", "erased", "-o", "b.png")
    assert opened("a.png").tobytes() == opened("b.png").tobytes()


def test_checkpoint_of_a_training(invoke: Invoke, work: Path) -> None:
    few = ("erase", "esd", "church", "--model", "../tiny", "--steps", 2, "--ddim-steps", 2)
    assert invoke(*few, "-o", "a.safetensors")[0] == 0
    assert invoke(*few, "-o", "b.safetensors", "--checkpoint", "state")[0] == 0
    assert Edit.load("a.safetensors") == Edit.load("b.safetensors")


def test_evaluate(invoke: Invoke, work: Path) -> None:
    invoke("erase", "uce", "church", "--preserve", "dog", "--model", "../known", "-o", "church.safetensors")
    code, out, err = invoke(
        "evaluate", "church.safetensors", "--json", "out.json", "--seeds", "0", "--related-seeds", "0",
        "--target-seeds", "0:2", "--steps", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    (found,) = read(work / "out.json")
    assert {"target", "related", "unrelated", "implicit", "implicit_held_out", "unpreserved"} <= set(found.summaries)
    assert found.summaries["target"].before.n == 2
    assert found.edit.id == Edit.load("church.safetensors").id
    assert found.edit.method == "uce"
    assert found.evaluator.evaluator == "random"
    assert "erased" in out
    assert out.splitlines()[-1] == "out.json"


@pytest.mark.slow
def test_evaluate_computes_the_metrics_that_are_named_and_prints_them(invoke: Invoke, work: Path) -> None:
    invoke("erase", "uce", "church", "--model", "../known", "-o", "church.safetensors")
    code, out, err = invoke(
        "evaluate", "church.safetensors", "--json", "out.json", "--seeds", "0", "--related-seeds", "0",
        "--target-seeds", "0:2", "--implicit-seeds", "0", "--styled-seeds", "0", "--steps", 1,
        "--metric", "ssim,window=7", "--metric", "changed_weights",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (found,) = read(work / "out.json")
    assert len(found.scored) == 1
    assert found.metrics[found.scored[0]]["window"] == 7
    shown = [line.split() for line in out.splitlines()]
    assert any(line[:1] == ["changed_weights"] and float(line[-1]) > 0 for line in shown)
    assert any(line[:2] == ["ssim", "window=7"] for line in shown)


def test_lists(invoke: Invoke) -> None:
    for kind in ("methods", "attacks", "metrics", "judges"):
        _, out, _ = invoke("list", kind)
        assert all(name in out for name in registry.names(kind)) if (registry.ROOT / kind).is_dir() else out
    assert "kohya-lora" in invoke("list", "exports")[1]
    assert "mini" in invoke("list", "models")[1]
    assert "church" in invoke("list", "concepts")[1]
    assert "neon" in invoke("list", "concepts", "--model", "../known")[1]


def test_version_and_help(invoke: Invoke) -> None:
    assert invoke("--version")[1].strip() == f"efface {efface.__version__}"
    for args in ((), ("erase",), ("erase", "esd"), ("generate",), ("evaluate",)):
        code, out, _ = invoke(*args, "--help")
        assert code == 0
        assert "Usage" in out


REFUSED = [
    ("erase ucee church -o x.safetensors", "did you mean 'uce'"),
    ("erase uce churhc --model ../known -o x.safetensors", "did you mean 'church'"),
    ("erase uce church --preserve huose --model ../known -o x.safetensors", "did you mean 'house'"),
    ("erase uce church --preserve church --model ../tiny -o x.safetensors", "both erased and preserved"),
    ("erase uce church church --model ../tiny -o x.safetensors", "named twice"),
    ("erase uce church --keep dog --model ../tiny -o x.safetensors", "unknown flag of efface erase uce '--keep'"),
    ("erase uce church --rigde 1 --model ../tiny -o x.safetensors", "did you mean '--ridge'"),
    ("erase uce church --ridge x --model ../tiny -o x.safetensors", "--ridge"),
    ("erase uce church --ridge -1 --model ../tiny -o x.safetensors", "ridge"),
    ("erase uce church --preset papr --model ../tiny -o x.safetensors", "preset"),
    ("erase uce church --seed -1 --model ../tiny -o x.safetensors", "--seed"),
    ("erase uce church --kind objekt --model ../tiny -o x.safetensors", "did you mean 'object'"),
    ("erase uce church --anchor a b --model ../tiny -o x.safetensors", "--anchor"),
    ("erase uce church --dtype fp23 --model ../tiny -o x.safetensors", "dtype"),
    ("erase uce church --device gpu --model ../tiny -o x.safetensors", "device"),
    ("erase uce --model ../tiny -o x.safetensors", "CONCEPT"),
    ("erase uce church --model minni -o x.safetensors", "did you mean 'mini'"),
    ("erase uce church --model ../home -o x.safetensors", "model"),
    ("erase uce church --model ../nothing/here -o x.safetensors", "no model at"),
    ("erase uce church --model model.ckpt -o x.safetensors", "pickle"),
    ("erase uce church --model bad.safetensors -o x.safetensors", "not a safetensors file"),
    ("erase uce church --model ../tiny -o nowhere/x.safetensors", "does not exist"),
    ("erase uce church --model ../tiny -o bad.safetensors/x.safetensors", "not a folder"),
    ("erase uce church --model ../tiny -o x.bin", "ends in .safetensors"),
    ("erase uce church --model ../tiny -o ..", "is a folder"),
    ("erase uce church --model ../tiny", "--output"),
    ("generate @ --model ../tiny", "prompt is empty"),
    ("generate church --model ../tiny --seeds 3:1", "--seeds"),
    ("generate church --model ../tiny --seeds -1", "--seeds"),
    ("generate church --model ../tiny --steps 0", "--steps"),
    ("generate church --model ../tiny --guidance 1000", "--guidance"),
    ("generate church --model ../tiny --batch 0", "--batch"),
    ("generate church --model ../tiny --solver dimm", "did you mean 'ddim'"),
    ("generate church --model ../tiny --edit bad.safetensors", "not a safetensors file"),
    ("generate church --model ../tiny --edit none.safetensors", "unknown edit file"),
    ("generate church --model ../tiny --edit ../tiny", "no such file"),
    ("generate church --model ../tiny --seeds 0:90000", "more than"),
    ("generate church --model ../tiny --seeds 0:999999999999999999", "more than"),
    ("generate church --model ../tiny --seeds 0:9999999999999999999", "--seeds"),
    ("compare church --model ../tiny", "--edit"),
    ("evaluate none.safetensors", "unknown edit file"),
    ("combine none.safetensors -o x.safetensors", "unknown edit file"),
    ("export none.safetensors --model ../tiny -o x", "unknown edit file"),
    ("export none.safetensors --model mini -o x", "name a folder or a file"),
    ("erase uce church --model mini --stream -o x.safetensors", "--stream"),
    ("erase negative church --model ../tiny --stream -o x.safetensors", "--stream"),
    ("list method", "did you mean 'methods'"),
    ("list concepts --model ../tiny", "no concept table"),
    ("genrate church", "generate"),
    ("demo --concept churhc -o out", "did you mean 'church'"),
    ("demo --concept neon -o out", "style"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED)
def test_refusals_are_one_line_and_leave_nothing(
    line: str, says: str, invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "bad.safetensors").write_bytes(b"not one")
    (work / "model.ckpt").write_bytes(b"\x80\x02")
    before = sorted(work.iterdir())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before everything was checked")

    monkeypatch.setattr(Model, "load", never)
    code, out, err = invoke(*(word.replace("@", "") for word in line.split()))
    assert code == 2
    assert says in err
    assert out == ""
    assert err.count("\n") == 1
    assert sorted(work.iterdir()) == before


@pytest.mark.slow
def test_edit_of_another_model_is_refused(invoke: Invoke, work: Path, folder2: Path) -> None:
    invoke(*ERASE)
    code, _, err = invoke("generate", "a church", "--model", folder2, "--edit", "church.safetensors", "-o", "x.png")
    assert code == 2
    assert "made on ../tiny" in err
    assert "--any-base" in err
    forced = ("generate", "a church", "--model", folder2, "--edit", "church.safetensors", "--steps", 1, "--any-base")
    assert invoke(*forced, "-o", "x.png")[0] in (0, 2)  # 2 where the shapes differ as well
    (work / "x.png").unlink(missing_ok=True)
    assert not (work / "x.png").exists()


def test_truncated_edit_is_refused(invoke: Invoke, work: Path) -> None:
    invoke(*ERASE)
    whole = (work / "church.safetensors").read_bytes()
    (work / "cut.safetensors").write_bytes(whole[:-9])
    code, _, err = invoke("generate", "a church", "--model", "../tiny", "--edit", "cut.safetensors", "-o", "x.png")
    assert code == 2
    assert "truncated" in err


def test_full_disk_leaves_nothing(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    monkeypatch.setattr("efface.evaluation.store.Store._write", lambda *_: None)
    code, _, err = invoke("generate", "a church", "--model", "../tiny", "--steps", 1, "-o", "x.png")
    assert code == 2
    assert "No space left" in err
    assert list(work.iterdir()) == []


LIGHT = (
    "--help",
    "erase --help",
    "erase esd --help",
    "erase uce --help",
    "list methods",
    "list families",
    "list attacks",
    "list concepts",
)


@pytest.mark.parametrize(
    "line",
    [*LIGHT, "list models", "list exports"]
    + [f"{name} --help" for name in ("export", "inspect", "generate", "evaluate", "demo")],
)
def test_help_and_lists_need_no_torch(line: str) -> None:
    """What answers at once imports no heavy library and none of the modules that need one."""
    code = (
        "import sys; from efface.cli.app import run; run(sys.argv[1:]); "
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'numpy', 'PIL', 'jaxtyping', 'jinja2'}; "
        "own = {'efface.query', 'efface.method', 'efface.models.model', 'efface.edits.edit'}; "
        "bad = (heavy | own) & set(sys.modules); sys.exit(str(bad) if bad else None)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


HIDDEN = """
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] == "torchvision" else PathFinder.find_spec(name, path, target)
    invalidate_caches = PathFinder.invalidate_caches
    find_distributions = PathFinder.find_distributions
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import importlib.util
assert importlib.util.find_spec("torchvision") is None
import logging
from efface.cli.app import main
try:
    main(sys.argv[1:])
finally:
    assert "efface.models.model" in sys.modules
    assert "transformers.utils.import_utils" in sys.modules
    logging.getLogger("transformers.utils.import_utils").warning("a real warning")
"""


@pytest.mark.slow
def test_a_missing_torchvision_gives_no_warning(work: Path) -> None:
    """Other warnings of the same module still come through."""
    args = ("generate", "a church", "--model", "../tiny", "--steps", "1", "-o", "one.png")
    done = subprocess.run([sys.executable, "-c", HIDDEN, *args], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines() == ["[transformers] a real warning"]
    assert "generated 1 image" in done.stdout


def test_a_file_in_commands_is_a_command(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "hello.py").write_text(
        "import typer\nORDER = 15\n"
        "def run(names: list[str], more: list[str] = typer.Option([], '--more')) -> None:\n"
        '    """Greet."""\n'
        "    typer.echo(f'hello {names} {more}')\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(folder)])
    assert names()[:3] == ["erase", "hello", "generate"]
    assert invoke("hello", "a", "b", "--more", "c", "d") == (0, "hello ['a', 'b'] ['c', 'd']\n", "")
    assert "Greet." in invoke("--help")[1]
    monkeypatch.delitem(sys.modules, "efface.cli.commands.hello")
    monkeypatch.delattr(commands, "hello")


@pytest.mark.parametrize("seed", [-1, 2**63, "9" * 5000])
def test_a_seed_out_of_range_is_refused_in_one_line(seed: object, invoke: Invoke) -> None:
    code, out, err = invoke("erase", "uce", "church", "--model", "../tiny", "-o", "x.safetensors", "--seed", seed)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--seed" in err


def test_the_program_is_installed() -> None:
    done = subprocess.run([sys.executable, "-m", "efface", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"efface {efface.__version__}"


def test_the_path_of_a_metric_may_hold_commas(tmp_path: Path) -> None:
    from efface.cli.check import metrics
    from efface.errors import BadInput

    path = tmp_path / "alex,net.safetensors"
    path.write_bytes(b"")
    (made,) = metrics([f"lpips,weights={path},size=32"])
    assert (made.weights, made.size) == (str(path), 32)
    with pytest.raises(BadInput, match="'7' is no setting"):
        metrics(["ssim,7"])
