"""`efface purify` end to end on a random tiny model, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efface import Edit
from efface.cli.app import run
from efface.models.images import square
from efface.models.model import Model
from efface.models.purification import purify

Invoke = Callable[..., tuple[int, str, str]]
ERASE = ("erase", "surgical", "church", "--preset", "purification", "--model", "../tiny", "--steps", 1, "--lr", 1e-2)
FEW = ("--ddim-steps", 2, "--warmup", 0, "--start", 0)


@pytest.fixture(scope="module")
def edit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a purifying edit of the model `../tiny`."""
    place = tmp_path_factory.mktemp("purify")
    (place / "tiny").symlink_to(folder)
    with pytest.MonkeyPatch.context() as patch:
        (place / "work").mkdir()
        patch.chdir(place / "work")
        assert run([str(word) for word in (*ERASE, *FEW, "-o", "church.safetensors")]) == 0
    return place / "work" / "church.safetensors"


@pytest.fixture
def invoke(
    folder: Path, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Invoke:
    """Run `efface purify` in a folder with an image, an edit, and other files."""
    (tmp_path / "tiny").symlink_to(folder)
    place = tmp_path / "work"
    place.mkdir()
    shutil.copy(edit, place / "church.safetensors")
    pixels = torch.rand(24, 20, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    Image.fromarray(pixels).save(place / "photo.png")
    (place / "cut.png").write_bytes((place / "photo.png").read_bytes()[:700])
    (place / "text.png").write_text("no picture")
    monkeypatch.chdir(place)

    def go(line: str) -> tuple[int, str, str]:
        code = run(["purify", *line.split()])
        out = capsys.readouterr()
        return code, out.out, out.err

    return go


def drawn(name: str) -> torch.Tensor:
    with Image.open(name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("flags", "prompt"), [("", ""), ("--concept church", "church"), ("-c church dog", "church, dog")]
)
def test_it_writes_what_python_gives(flags: str, prompt: str, invoke: Invoke, tiny: Model) -> None:
    """Null text without a concept; the base model is the one the edit was made on."""
    code, out, err = invoke(f"photo.png --edit church.safetensors {flags} --steps 3 --guidance 2 -o out.png")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "out.png"
    picture = square("photo.png", 16)
    with Edit.load("church.safetensors").applied(tiny) as edited:
        expected = purify(edited, picture[None], prompt, 3, 2.0)[0]
    assert (drawn("out.png") - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_edits_add_up_and_change_the_image(invoke: Invoke) -> None:
    for name, edits in (
        ("one", "church.safetensors"),
        ("sum", "0.5*church.safetensors 0.5*church.safetensors"),
        ("none", "0*church.safetensors"),
    ):
        assert invoke(f"photo.png --edit {edits} --model ../tiny --steps 2 -o {name}.png")[0] == 0
    assert (drawn("one.png") - drawn("sum.png")).abs().max() <= 1 / 255
    assert (drawn("one.png") - drawn("none.png")).abs().max() > 1 / 255


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("none.png --edit church.safetensors", "no image at none.png"),
        ("cut.png --edit church.safetensors", "cannot read the image cut.png"),
        ("text.png --edit church.safetensors", "cannot read the image text.png"),
        (".. --edit church.safetensors", "no image at .."),
        ("photo.png", "give an edit"),
        ("photo.png --edit none.safetensors", "did you mean 'church.safetensors'"),
        ("photo.png --edit church.safetensors --steps 0", "--steps 0"),
        ("photo.png --edit church.safetensors --guidance -1", "--guidance"),
        ("photo.png --edit church.safetensors --depth 1.5", "--depth"),
        ("photo.png --edit church.safetensors --dtype fp23", "dtype"),
        ("photo.png --edit church.safetensors --concept churhc --model mini", "did you mean 'church'"),
        ("photo.png --edit church.safetensors --model minni", "did you mean 'mini'"),
        ("photo.png --edit church.safetensors -o x.jpg", "ends in .png"),
        ("photo.png --edit church.safetensors -o no/x.png", "does not exist"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(
    line: str, says: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before everything was checked")

    monkeypatch.setattr(Model, "load", never)
    before = sorted(Path().iterdir())
    code, out, err = invoke(line)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(Path().iterdir()) == before
