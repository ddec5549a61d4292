"""`efface export` and `efface inspect` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from efface.cli.app import run
from efface.edits.edit import Edit
from efface.methods.esd import ESD
from efface.methods.uce import UCE


@pytest.fixture
def go(tmp_path: Path, folder: Path, tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Make a folder with an edit of text maps and a dense one; return a function that runs a command line there."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(folder)
    UCE()(tiny, ["church"]).save("church.safetensors")
    dense = ESD(steps=1, ddim_steps=2)(tiny, ["church"])
    dense.save("biases.safetensors")
    dense.prune(without="*.bias").save("dense.safetensors")

    def invoke(line: str) -> tuple[int, str, str]:
        code = run(line.split())
        out = capsys.readouterr()
        return code, out.out, out.err

    return invoke


def test_each_format_is_written_and_inspected(go):
    for to, options, kind in (
        ("kohya-lora", "", "LoRA"),
        ("diffusers-lora", "--dtype fp32", "LoRA"),
        ("diff", "--dtype bf16", "full differences"),
    ):
        code, out, err = go(
            f"export church.safetensors --to {to} {options} --model tiny --check weights -o {to}.safetensors"
        )
        assert (code, err) == (0, "")
        assert f"as {to}: 8 weights" in out
        assert "error of the differences" in out
        assert out.splitlines()[-1] == f"{to}.safetensors"
        code, out, err = go(f"inspect {to}.safetensors --model tiny --json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert (found["kind"], found["made"]["erase"], found["fits"]) == (kind, ["church"], True)
    code, out, _ = go("inspect church.safetensors --model tiny")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("fits the model")] == ["yes"]


def test_the_edit_names_its_model_itself(go, folder: Path):
    code, _, err = go("export church.safetensors --to kohya-lora -o x.safetensors --check weights")
    assert (code, err) == (0, "")
    assert str(folder) == Edit.load("church.safetensors").meta["base"]["name"]
    anonymous = Edit.load("church.safetensors")
    Edit(maps=anonymous.maps).save("anonymous.safetensors")
    code, _, err = go("export anonymous.safetensors --to kohya-lora -o y.safetensors")
    assert code == 2
    assert "does not name the model it was made on: give it as --model" in err
    assert not Path("y.safetensors").exists()


def test_a_folder_is_the_only_format_that_is_inferred(go):
    code, out, err = go("export 0.5*church.safetensors --model tiny -o erased --check weights")
    assert (code, err) == (0, "")
    assert "as diffusers-folder" in out
    code, out, _ = go("inspect erased --json")
    assert json.loads(out)["made"]["id"] == (0.5 * Edit.load("church.safetensors")).id
    assert "unet: written by efface: some weights are edited" in json.loads(out)["notes"]


def test_a_dense_edit_needs_a_rank_or_an_error(go):
    line = "export dense.safetensors --to kohya-lora --model tiny --check weights -o x.safetensors"
    code, _, err = go(line)
    assert code == 2
    assert "--rank 64" in err
    code, _, err = go(line.replace("dense", "biases"))
    assert code == 2
    assert "edit.prune(without='*.bias')" in err
    code, out, err = go(f"{line} --error 0.2")
    assert (code, err) == (0, "")
    error = float(next(row for row in out.splitlines() if row.startswith("error")).split()[4])
    assert 0.0 < error <= 0.2
    code, out, _ = go(f"{line} --rank 1")
    assert code == 0
    assert ", rank 1, fp16" in out


def test_inspecting_an_edit_imports_no_torch(go):
    script = (
        "import sys; from efface.cli.app import run; assert run(['inspect', 'church.safetensors']) == 0;"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
