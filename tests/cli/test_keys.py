"""KPOP's key on the command line: written on request, to its own file, and valid for its own edit only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from efface import Edit
from efface.cli.app import run
from efface.cli.fields import sheet
from efface.models.learned_prompt import unlocked
from efface.models.model import Model
from efface.util.files import load_safetensors

Invoke = Callable[[str], tuple[int, str, str]]
KPOP = "erase kpop {} --model ../tiny --steps 2 --ddim-steps 2 --lr 1e-3 --prompt-lr 1e-2 --where down-mid-up"
DRAW = "--model ../tiny --steps 2"


@pytest.fixture(scope="module")
def place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with two edits, their keys, and an edit whose key is lost."""
    place = tmp_path_factory.mktemp("keys")
    (place / "tiny").symlink_to(folder)
    (place / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "work")
        for line in (
            f"{KPOP.format('church')} -o church.safetensors --key church.key.safetensors",
            f"{KPOP.format('dog')} -o dog.safetensors --key dog.key.safetensors",
            f"{KPOP.format('church')} -o lost.safetensors",
            f"{KPOP.format('church dog')} --keys each -o both.safetensors --key both.key.safetensors",
            "erase uce house --model ../tiny -o house.safetensors",
        ):
            assert run(line.split()) == 0
    return place / "work"


@pytest.fixture
def invoke(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    monkeypatch.chdir(place)
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))

    def go(line: str) -> tuple[int, str, str]:
        code = run(line.split())
        out = capsys.readouterr()
        return code, out.out, out.err

    return go


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_without_the_flag_nothing_of_the_key_is_written(place: Path) -> None:
    with_key, without = (load_safetensors(place / f"{name}.safetensors")[0] for name in ("church", "lost"))
    assert with_key.keys() == without.keys()
    assert all(torch.equal(with_key[name], without[name]) for name in with_key)
    key = load_safetensors(place / "church.key.safetensors")[0]["extra.prompt"]
    assert not any(tensor.numel() >= key.numel() and key.shape == tensor.shape for tensor in without.values())
    assert not any("prompt" in name for name in without)
    assert sorted(p.name for p in place.glob("*.safetensors")) == sorted(
        ["both.key.safetensors", "both.safetensors", "church.key.safetensors", "church.safetensors",
         "dog.key.safetensors", "dog.safetensors",
         "house.safetensors", "lost.safetensors"]
    )  # fmt: skip


def test_the_key_says_which_edit_it_opens_and_is_no_edit_itself(place: Path) -> None:
    key, edit = Edit.load(place / "church.key.safetensors"), Edit.load(place / "church.safetensors")
    assert key.meta["edit"] == edit.id
    assert key.meta["erase"] == edit.meta["erase"]
    assert not key.names
    assert not key.guards


def test_generate_with_a_key_brings_the_concept_back(invoke: Invoke, place: Path, tmp_path: Path, tiny: Model) -> None:
    drawn = {}
    for name, flags in {
        "plain": "",
        "edited": "--edit church.safetensors",
        "key": "--edit church.safetensors --key church.key.safetensors",
        "again": "--edit church.safetensors",
        "sum": "--edit church.safetensors + house.safetensors".replace(" + ", "+"),
        "sum-key": "--edit house.safetensors church.safetensors --key church.key.safetensors",
    }.items():
        assert invoke(f"generate church {DRAW} {flags} -o {tmp_path / name}.png")[0::2] == (0, ""), name
        drawn[name] = pixels(f"{tmp_path / name}.png")
    assert len({drawn[name] for name in ("plain", "edited", "key", "sum", "sum-key")}) == 5
    assert drawn["again"] == drawn["edited"]  # images with the key are stored separately
    from efface.query import Query
    from efface.report import grid

    with Edit.load("church.safetensors").applied(tiny) as sanitized:
        model = unlocked(sanitized, Edit.load("church.key.safetensors"))
        image = grid.to_image(model.generate([Query("church", 0, 2)])[0])
    assert image.convert("RGB").tobytes() == drawn["key"]


def test_compare_has_one_more_column(invoke: Invoke, tmp_path: Path) -> None:
    both = f"compare church {DRAW} --edit church.safetensors --edit house.safetensors --seeds 0"
    assert invoke(f"{both} -o {tmp_path}/a.png")[0] == 0
    assert invoke(f"{both} --key church.key.safetensors -o {tmp_path}/b.png")[0] == 0
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert b.width > a.width + 16
        assert b.height == a.height


def test_a_key_with_a_prompt_for_each_concept(invoke: Invoke, place: Path, tmp_path: Path, tiny: Model) -> None:
    key = Edit.load(place / "both.key.safetensors")
    assert set(key.extra) == {"prompt.church", "prompt.dog"}
    both, drawn = f"{DRAW} --edit both.safetensors", {}
    for concept in ("church", "dog"):
        flags = f"--key both.key.safetensors --key-concept {concept}"
        assert invoke(f"generate church {both} {flags} -o {tmp_path / concept}.png")[0::2] == (0, "")
        drawn[concept] = pixels(f"{tmp_path / concept}.png")
    assert drawn["church"] != drawn["dog"]
    from efface.query import Query
    from efface.report import grid

    with Edit.load("both.safetensors").applied(tiny) as sanitized:
        for concept, seen in drawn.items():
            image = grid.to_image(unlocked(sanitized, key, concept).generate([Query("church", 0, 2)])[0])
            assert image.convert("RGB").tobytes() == seen
    line = f"compare church {both} --key both.key.safetensors --key-concept dog --seeds 0 -o {tmp_path}/c.png"
    assert invoke(line)[0::2] == (0, "")


def test_two_keys_are_two_models(place: Path, tiny: Model) -> None:
    """Images are stored under the model's id, which the key's prompt must change: an edit's id leaves `extra` out."""
    keys = [Edit.load(place / f"{name}.key.safetensors") for name in ("church", "dog")]
    assert unlocked(tiny, keys[0]).id != unlocked(tiny, keys[1]).id
    assert unlocked(tiny, keys[0]).id == unlocked(tiny, keys[0]).id


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("generate church --edit church.safetensors --key dog.key.safetensors", "not among those given"),
        ("generate church --edit church.safetensors --key dog.safetensors", "is not a key"),
        ("generate church --edit church.safetensors --key ../tiny/model_index.json", "not a safetensors file"),
        ("generate church --edit church.safetensors --key none.safetensors", "does not exist"),
        ("generate church --key church.key.safetensors", "give the edit"),
        ("generate church --edit both.safetensors --key both.key.safetensors", "choose one of them with --key-concept"),
        (
            "generate church --edit both.safetensors --key both.key.safetensors --key-concept house",
            "unknown concept of this key 'house'",
        ),
        (
            "compare church --edit church.safetensors --key church.key.safetensors --key-concept dog",
            "unknown concept of this key 'dog'",
        ),
        ("compare church --edit church.safetensors --key-concept church", "needs the key"),
        ("compare church --edit house.safetensors --key church.key.safetensors", "not among those given"),
        ("erase kpop church -o x.safetensors --key x.safetensors", "the edit's own file"),
        ("erase kpop church -o x.safetensors --key no/x.safetensors", "does not exist"),
        ("erase kpop church -o x.safetensors --key x.bin", "ends in .safetensors"),
        ("erase esd church -o x.safetensors --key y.safetensors", "flag of efface erase esd"),
    ],
)
def test_refusals(line: str, says: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "load", lambda *_, **__: pytest.fail("a model was loaded before all was checked"))
    before = sorted(Path().iterdir())
    code, out, err = invoke(f"{line} --model ../tiny")
    assert (code, out) == (2, "")
    assert says in err
    assert sorted(Path().iterdir()) == before


def test_the_flag_is_there_for_methods_that_make_a_key() -> None:
    assert sheet("methods", "kpop").by_products == ("key",)
    assert sheet("methods", "esd").by_products == ()
