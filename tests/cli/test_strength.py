"""`efface erase --strength`: what cannot work is said before any work, and nothing that was trained is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efface import Edit
from efface.cli import strength
from efface.cli.app import run
from efface.methods.finetune.method import FineTune
from efface.methods.uce import UCE

Go = Callable[[str], tuple[int, str]]


@pytest.fixture
def go(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """Run a command in a folder that holds the tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(folder)

    def call(line: str) -> tuple[int, str]:
        code = run(line.split())
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("erase esd church dog --model tiny --strength auto", "looks at one concept, 2 are erased"),
        ("erase esd church --model tiny --strength auto", "no judge for tiny"),
        ("erase esd church --model tiny --strength auto --strength-judge nudenet", "needs a judge with a CLIP|nudenet"),
        ("erase esd church --model tiny --strength-judge clip", "--strength-judge needs --strength auto"),
        ("erase esd church --model tiny --checkpoint /proc/none", "cannot make the folder"),
        ("erase uce church --target car", "--target would change nothing, since church has the anchor"),
        ("erase uce church --style-target art", "there is no concept of its kind"),
    ],
)
def test_it_is_said_before_the_training(go: Go, monkeypatch: pytest.MonkeyPatch, line: str, says: str) -> None:
    for method in (FineTune, UCE):
        monkeypatch.setattr(method, "fit", None)
    code, err = go(f"{line} -o x.safetensors")
    assert code == 2
    assert any(word in err for word in says.split("|")), err


def test_guards_have_no_strength(go: Go) -> None:
    for method in ("negative", "sld", "safety_filter"):
        code, err = go(f"erase {method} church --model tiny --strength 0.5 -o x.safetensors")
        assert (code, "unknown flag" in err) == (2, True), err


def test_what_was_trained_is_kept_when_no_strength_will_do(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strength, "judge", lambda *_: object())
    monkeypatch.setattr(strength, "chosen", lambda edit, *_: (edit, "no strength is below 0.2"))
    code, err = go("erase uce church --model tiny --strength auto -o x.safetensors")
    assert code == 2
    assert "no strength is below 0.2; x.safetensors holds the edit at strength 1" in err
    assert Edit.load("x.safetensors").meta["method"] == "uce"


def test_the_key_of_a_scaled_edit_opens_it(go: Go) -> None:
    kpop = "erase kpop church --model tiny --steps 1 --ddim-steps 2 --size 1 --strength 0.5"
    assert go(f"{kpop} --key k.safetensors -o half.safetensors")[0] == 0
    assert Edit.load("half.safetensors").meta["scale"] == 0.5
    code, err = go("generate dog --model tiny --steps 1 -e half.safetensors --key k.safetensors -o x.png")
    assert code == 0, err


def test_names_that_a_table_lacks(go: Go, tmp_path: Path) -> None:
    """In any case, and with a kind also those that are not in it."""
    table = '{"objects": [], "styles": [{"name": "Van Gogh", "kind": "style", "related": ["Monet"]}]}'
    shutil.copytree(tmp_path / "tiny", tmp_path / "own")
    (tmp_path / "own" / "concepts.json").write_text(table)
    assert run(["erase", "uce", "van gogh", "--model", "own", "-o", "b.safetensors"]) == 0
    assert Edit.load("b.safetensors").meta["erase"][0]["name"] == "Van Gogh"
    code, err = go("erase uce Monet --model own -o c.safetensors")
    assert code == 2
    assert "with --kind, a name that is not in the table is taken as it is" in err
    assert go("erase uce Monet --kind style --model own -o c.safetensors")[0] == 0


def test_a_prompt_behind_a_flag_of_many_values_is_missed_with_a_hint(go: Go) -> None:
    code, err = go("compare --edit x.safetensors castle -o x.png")
    assert code == 2
    assert "--edit takes all values up to the next flag, so name them before it" in err
