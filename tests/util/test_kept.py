"""What is kept is found again by all that it depends on, and a damaged or unwritable cache costs time only."""

import os
from pathlib import Path

import pytest
import torch

from efface.util.kept import kept

ABOUT = {"model": "m", "seed": 1, "texts": ["a"]}


@pytest.fixture
def made() -> list[int]:
    return []


def test_it_is_made_once_for_one_description(made: list[int], own_home: Path) -> None:
    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.full((2,), float(len(made)))}

    first = kept("things", ABOUT, make)
    assert torch.equal(first["x"], torch.ones(2))
    assert torch.equal(kept("things", dict(reversed(ABOUT.items())), make)["x"], first["x"])
    assert len(made) == 1
    others = ({**ABOUT, "seed": 2}, {**ABOUT, "texts": ["b"]}, {**ABOUT, "more": None})
    assert [float(kept("things", one, make)["x"][0]) for one in others] == [2, 3, 4]
    assert float(kept("others", ABOUT, make)["x"][0]) == 5
    assert len(list((own_home / "things").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "bit", "other", "folder"])
def test_a_damaged_file_is_made_again(damage: str, own_home: Path) -> None:
    kept("things", ABOUT, lambda: {"x": torch.zeros(3)})
    (path,) = (own_home / "things").iterdir()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-2])
    elif damage == "bit":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 64]))
    elif damage == "other":
        kept("things", {"seed": 2}, lambda: {"x": torch.full((3,), 9.0)})
        next(one for one in path.parent.iterdir() if one != path).replace(path)
    else:
        path.unlink()
        path.mkdir()
    again = kept("things", ABOUT, lambda: {"x": torch.ones(3)})
    assert torch.equal(again["x"], torch.ones(3))
    if damage != "folder":
        assert torch.equal(kept("things", ABOUT, lambda: pytest.fail("made again"))["x"], torch.ones(3))


def test_a_cache_that_cannot_be_written_is_ignored(own_home: Path) -> None:
    own_home.parent.mkdir(parents=True, exist_ok=True)
    own_home.write_text("a file where the folder should be", encoding="utf-8")
    assert torch.equal(kept("things", ABOUT, lambda: {"x": torch.ones(1)})["x"], torch.ones(1))
    assert own_home.is_file()
    assert os.environ["EFFACE_HOME"] == str(own_home)
