"""A digits model is used like any other: by name, with its concept table, judged by its own judges."""

from pathlib import Path

import pytest

from efface.cli.app import run
from efface.concept import table
from efface.digits.classes import CLASSES
from efface.edits.edit import Edit
from efface.evaluation.record import Record, read
from efface.judge import judge_of
from efface.methods.task_vector import TaskVector
from efface.models.model import Model
from efface.report.page import Column, Page, render
from efface.util.shipped import SHIPPED

DIGITS = tuple(name for name in SHIPPED if name.startswith("digits:"))
METHOD = TaskVector(
    steps=2, lr=1e-3, batch=4, images=4, image_steps=1, guidance=1.0, params="full", only=("mid1.conv1",)
)


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    path = tmp_path / "seven.safetensors"
    METHOD(Model.load("digits:mnist"), [table("digits:mnist")["7"]]).save(path)
    return path


@pytest.mark.parametrize("name", DIGITS)
def test_the_concept_table_the_model_and_the_judges_know_the_same_classes(name: str):
    known = table(name)
    assert tuple(known) == CLASSES[name.removeprefix("digits:")]
    assert tuple(known) == judge_of(name).classes == judge_of(name, "judge2").classes
    assert tuple(known) == Model.load(name).pipe.tokenizer.names
    assert all(concept.texts == (concept.name,) and concept.kind == "object" for concept in known.values())


def test_every_model_that_ships_is_listed_loads_and_keeps_its_name(capsys: pytest.CaptureFixture[str]):
    assert run(["list", "models"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    for name in SHIPPED:
        assert name in listed
        assert Model.load(name).name == name


def test_an_edit_is_evaluated_by_name_with_the_model_s_own_sampling(edit: Path, capsys: pytest.CaptureFixture[str]):
    few = ["--seeds", "0:1", "--target-seeds", "0:3"]
    assert run(["evaluate", str(edit), "--json", "seven.json", *few]) == 0
    shown = capsys.readouterr()
    assert "erased" in shown.out
    assert "float32" not in shown.err
    (record,) = read(Path("seven.json"))
    assert isinstance(record, Record)
    assert (record.sampling.steps, record.sampling.guidance) == (5, 1.0)
    assert record.evaluator.evaluator == "digits-mnist-judge"
    assert record.model.name == "digits:mnist"
    assert record.concepts == ("7",)
    assert len(record.rows) == 2 * (3 + 9)
    assert {name: group.before.n for name, group in record.summaries.items()}["unrelated"] == 9
    assert record.summaries["target"].before.hits >= 2
    assert run(["evaluate", str(edit), "--json", "second.json", "--judge", "judge2", "--steps", "2", *few]) == 0
    (second,) = read(Path("second.json"))
    assert second.evaluator.evaluator == "digits-mnist-judge2"
    assert (second.sampling.steps, second.sampling.guidance) == (2, 1.0)
    page = render(Page("7", "", [Column("task vector", "of the 7", record)]))
    assert "task vector" in page
    assert "digits-mnist-judge" in page


def test_sheets_and_edits_are_made_from_the_command_line(edit: Path, capsys: pytest.CaptureFixture[str]):
    for command in ("generate", "compare"):
        line = [command, "7", "3", "-m", "digits:mnist", "-e", str(edit), "--seeds", "0:2", "-o", f"{command}.png"]
        assert run(line) == 0
        assert Path(f"{command}.png").is_file()
    quick = ["--steps", "1", "--batch", "2", "--images", "2", "--image-steps", "1", "--guidance", "1"]
    assert run(["erase", "task_vector", "bag", "-m", "digits:fashion", *quick, "-o", "bag.safetensors"]) == 0
    assert Edit.load(Path("bag.safetensors")).meta["base"]["name"] == "digits:fashion"
    assert run(["erase", "task_vector", "10", "-m", "digits:mnist", *quick, "-o", "no.safetensors"]) == 2
    assert "unknown concept '10'" in capsys.readouterr().err
    assert run(["generate", "7", "-m", "digits:mnits"]) == 2
    assert "did you mean 'digits:mnist'" in capsys.readouterr().err
