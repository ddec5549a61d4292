"""`python -m experiments.digits`: the commands end to end with tiny settings, and every refusal in one line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid
from efface.cli.app import run as run_commands
from efface.evaluation.record import Record, read
from experiments.digits.__main__ import app
from experiments.digits.bound import Sampling
from experiments.digits.records import Records


def run(args: list[str]) -> int:
    return run_commands(args, app, "digits")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shrink every setting so that the whole experiment takes seconds."""
    from experiments.digits import experiment, page, runs, search, table

    quick = {"steps": 2, "batch": 4, "images": 6, "image_steps": 2, "bf16": False}
    for name, method in experiment.METHODS.items():
        monkeypatch.setitem(experiment.METHODS, name, replace(method, **quick))
    for module in (experiment, table, search, page):
        monkeypatch.setattr(module, "QUERY", replace(experiment.QUERY, steps=1))
    monkeypatch.setattr(table, "ALPHAS", (1.0,))
    monkeypatch.setattr(table, "CHOOSING", (1, 2))
    monkeypatch.setattr(search, "FRESH", 4)
    monkeypatch.setattr(
        search, "GRIDS", {2: Grid(values=2, steps=(1, 0), images=(1, 1), survivors=(4, 2), more=1, replays=4)}
    )
    monkeypatch.setattr(runs, "ASCENT", Gradient(**Gradient.QUICK))
    monkeypatch.setattr(runs, "BOUND", Sampling(prompts=8, moments=2, slopes=2, noises=2))
    monkeypatch.setitem(Gradient.PRESETS, "inversion", {**Gradient.QUICK, "through": "eps"})
    monkeypatch.setattr(page, "SHOWN", 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_whole_experiment(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["table1", "--seeds", "1", "--folder", "d"]) == 0
    table = read(small / "d/mnist-0-table1.jsonl")
    assert [record.name for record in table] == ["fine-tuned", "fixed prompts", "prompt layers", "task vector"]
    for record in table:
        assert isinstance(record, Record)
        assert len(record.rows) == 2 * (9 + 9)  # by the original and the edited model
        assert {name: group.after.n for name, group in record.summaries.items()}["unrelated"] == 9
        assert record.evaluator.evaluator == "digits-mnist-judge2"
    first = (small / "d/mnist-0-table1.jsonl").read_text()
    assert run(["table1", "--seeds", "1", "--folder", "d"]) == 0
    assert (small / "d/mnist-0-table1.jsonl").read_text() == first  # nothing is measured twice
    assert run(["search", "--levels", "2", "--folder", "d", "--alpha", "0.5", "--alpha", "1"]) == 0
    out = capsys.readouterr().out
    assert "task-vector-0.5" in out
    found = Records(small / "d", "mnist", "0").searches()
    assert len(found.grid) == 6
    line = found.grid["original-seed0-L2"]
    assert (line.points, line.prompts, line.images) == (256, 256, 256 + 4 + 2 * 4)
    assert line.best.second.n == line.best.first.n == 4
    before = (small / "d/mnist-0-search.json").read_text()
    assert run(["search", "--levels", "2", "--folder", "d", "--alpha", "0.5", "--alpha", "1"]) == 0
    assert (small / "d/mnist-0-search.json").read_text() == before  # nothing is measured twice
    stale = json.loads(before)
    stale["gradient"]["task-vector-9-seed0"] = {**stale["gradient"]["task-vector-1-seed0"], "weights": "others"}
    (small / "d/mnist-0-search.json").write_text(json.dumps(stale))
    assert run(["search", "--levels", "2", "--folder", "d", "--alpha", "0.5", "--alpha", "1"]) == 0
    assert json.loads((small / "d/mnist-0-search.json").read_text()) == json.loads(
        before
    )  # what is of other weights goes
    assert run(["inversion", "--folder", "d"]) == 0
    assert run(["bound", "--model", "task vector", "--folder", "d"]) == 0
    assert "no prompt above" in capsys.readouterr().out
    (bounded,) = Records(small / "d", "mnist", "0").searches().bound.values()
    assert bounded.hits[0] >= bounded.hits[1]
    assert bounded.steepest == bounded.slopes[0]
    assert run(["page", "--folder", "d"]) == 0
    page = (small / "d/index.html").read_text()
    assert page.count("<svg") == 2
    assert "Figure 8" in page
    assert "A bound over the whole sphere" in page
    assert "http" not in page.replace("http://www.w3.org", "")


REFUSED = [
    ("table1 --dataset mnits", "did you mean 'mnist'"),
    ("table1 --target 11", "unknown class of mnist '11'"),
    ("table1 --seeds 0", "--seeds 0: at least 1"),
    ("search --levels 2:9", "from 2 to 6"),
    ("search --model tuned", "unknown model 'tuned'"),
    (
        "search --model original --folder no/weights --weights nowhere --levels 2 --no-gradient",
        "experiments.digits train",
    ),
    ("page --folder nothing -o page.html", "run `python -m experiments.digits table1` first"),
    ("page -o page.txt", "ends in .html"),
    ("train --dataset fashion --download", "install Debian's dataset-fashion-mnist"),
    ("train --dataset fashion --data .", "holds no train-images-idx3-ubyte"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refused(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(line.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_search_without_a_table_says_what_to_run(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "--levels", "2", "--model", "task vector", "--folder", "d"]) == 2
    assert "experiments.digits table1` chooses" in capsys.readouterr().err


def test_help_needs_no_torch_and_the_program_leaves_with_its_code() -> None:
    script = (
        "import runpy, sys; sys.argv[1:] = ['search', '--help']\n"
        "try: runpy.run_module('experiments.digits', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit(code or bool({'torch', 'diffusers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "--levels" in done.stdout
