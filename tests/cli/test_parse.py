"""Parsers of the command line: seeds, edit expressions, flags with several values."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from efface.cli import parse
from efface.cli.parse import Term
from efface.edits.edit import Edit
from efface.errors import BadInput, UnknownName
from efface.util.seeds import MAX_SEED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:4", (0, 1, 2, 3)),
        ("0,3,5", (0, 3, 5)),
        ("7", (7,)),
        ("2:4, 0", (2, 3, 0)),
        (str(MAX_SEED), (MAX_SEED,)),
    ],
)
def test_seeds(text: str, expected: tuple[int, ...]) -> None:
    assert parse.seeds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "4:4",
        "5:2",
        "-1",
        "-2:2",
        "1.5",
        "0:",
        "1,1",
        "0:3,2",
        str(MAX_SEED + 1),
        "0:9999999999999",
        "0:" + "9" * 5000,
        "9" * 5000,
    ],
)
def test_seeds_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--seeds") as error:
        parse.seeds(text)
    assert len(str(error.value)) < 250


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True))
def test_seeds_round_trip(numbers: list[int]) -> None:
    assert list(parse.seeds(",".join(map(str, numbers)))) == numbers


A, B, C = "a.safetensors", "b.safetensors", "dir-1/c-2.safetensors"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (A, [(1, A)]),
        ("0.5*a.safetensors + b.safetensors", [(0.5, A), (1, B)]),
        ("a.safetensors*0.5-b.safetensors", [(0.5, A), (-1, B)]),
        ("-a.safetensors", [(-1, A)]),
        ("2 * (a.safetensors - 0.5*b.safetensors)", [(2, A), (-1, B)]),
        ("a.safetensors/4", [(0.25, A)]),
        ("1e-1*a.safetensors", [(0.1, A)]),
        ("dir-1/c-2.safetensors - a.safetensors", [(1, C), (-1, A)]),
        ("dir-1/c-2.safetensors-a.safetensors", [(1, C), (-1, A)]),
        ("-(a.safetensors + b.safetensors)/2", [(-0.5, A), (-0.5, B)]),
        ("0.5*'my edit.safetensors'", [(0.5, "my edit.safetensors")]),
        ("3d.safetensors", [(1, "3d.safetensors")]),
        ("2*3d.safetensors", [(2, "3d.safetensors")]),
    ],
)
def test_terms(text: str, expected: list[tuple[float, str]]) -> None:
    assert parse.terms(text) == [(pytest.approx(scale), Path(path)) for scale, path in expected]


@pytest.mark.parametrize(
    "text",
    [
        "a.safetensors +",
        "a.safetensors b.safetensors",
        "a.safetensors*b.safetensors",
        "(a.safetensors",
        "2 + a.safetensors",
        "a.safetensors/0",
        "a.safetensors ^ 2",
        "1/a.safetensors",
        "a.safetensors)",
        "notes.txt",
        "",
        "0.5",
    ],
)
def test_terms_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as error:
        parse.terms(text)
    assert "\n" not in str(error.value)


def test_a_file_that_exists_is_taken_literally(tmp_path: Path) -> None:
    odd = tmp_path / "2*x + y.safetensors"
    odd.touch()
    assert parse.terms(str(odd)) == [Term(1.0, odd)]


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    Edit(delta={"unet.x": torch.ones(1)}).save(tmp_path / "church.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "church-lora.safetensors")  # what is no edit is not offered
    with pytest.raises(UnknownName, match=r"did you mean '[^']*church\.safetensors'\? \(known: [^,]*\)"):
        parse.check_files([parse.terms(f"0.5*{tmp_path}/churhc.safetensors")])


def test_spread_repeats_the_flag_until_the_next_flag() -> None:
    given = ["uce", "church", "--preserve", "house", "gas pump", "-o", "x", "--preserve", "dog", "--anchor", "-1"]
    wanted = "uce church --preserve house --preserve | -o x --preserve dog --anchor -1".replace("|", "gas_pump").split()
    assert parse.spread(given, ["--preserve", "--anchor"]) == [w.replace("_", " ") for w in wanted]
