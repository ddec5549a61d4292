"""A bench does what is missing, survives its workers, and notes what fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import efface
from efface.errors import BadInput
from efface.evaluation.bench.file import parse
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job, jobs
from efface.evaluation.bench.work import Here, Processes, connect, work
from efface.evaluation.store import Store

GRADIENT = {"restarts": 1, "iterations": 1, "noises": 1, "steps": 1, "images": 1, "ranking": 1}
BENCH = {
    "model": "digits:mnist",
    "concepts": ["7"],
    "methods": ["negative", {"name": "esd", "steps": 1, "batch": 1, "params": "full"}],
    "attacks": [
        {"name": "gradient", "restarts": 1, "iterations": 1, "noises": 1, "steps": 1, "images": 1, "ranking": 1}
    ],
    "seeds": {"target": 2, "others": 1, "related": 1, "attack": 2},
}


@pytest.fixture(scope="module")
def planned() -> list[Job]:
    return jobs(parse(BENCH), efface.load("digits:mnist").id)


def test_it_does_what_is_missing(planned: list[Job], tmp_path: Path) -> None:
    store, one = Store(tmp_path / "store"), Folder(tmp_path / "one")
    first = work(planned, one, Here(one, store))
    assert (first.before, first.done, first.failed) == (0, 6, {})
    assert len(one.records()) == len(one.attacks()) == 2
    record = one.attacks()[0]
    assert record.rates.pre.n == 2
    assert record.asked is not None
    assert record.evaluator.evaluator != record.asked.evaluator
    assert all(store.image(key) is not None for row in record.rows for key in (row.original, row.edited, row.attacked))
    assert not list((one.root / "checkpoints").iterdir())

    again = work(planned, one, Here(one, store))
    assert (again.before, again.done) == (6, 0)
    one.path(planned[-1]).write_text("{ half")  # what a full disk leaves is no result
    assert work(planned, one, Here(one, store)).done == 1


@pytest.mark.slow  # each process imports torch
def test_processes_give_the_same_records(planned: list[Job], tmp_path: Path, results) -> None:
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    work(planned, one, Here(one, Store(tmp_path / "store")))
    assert work(planned, two, Processes(two, Store(tmp_path / "other"), 2)).done == 6
    assert results(two.root) == results(one.root)


def test_a_failing_job_is_tried_twice_noted_and_done_when_it_can_be(planned: list[Job], tmp_path: Path) -> None:
    from dataclasses import replace

    wrong = [replace(job, model_id="0" * 64) for job in planned]
    folder, told = Folder(tmp_path), []
    outcome = work(wrong, folder, Here(folder, Store(tmp_path / "store")), told.append)
    assert outcome.done == 0
    assert len(outcome.failed) == len({job.label for job in wrong})
    assert len(told) == 4  # two edits, twice
    assert "has changed since" in told[0]
    assert any(error.startswith("not tried") for error in folder.failures().values())


def test_an_attack_that_refuses_an_edit_did_not_fail(tmp_path: Path) -> None:
    bench = BENCH | {"methods": ["negative"], "attacks": ["derived"]}
    folder, told = Folder(tmp_path), []
    outcome = work(
        jobs(parse(bench), efface.load("digits:mnist").id), folder, Here(folder, Store(tmp_path)), told.append
    )
    assert (outcome.done, outcome.failed) == (2, {})
    assert list(outcome.refused) == ["derived on negative 7"]
    assert [line.startswith("derived on negative 7: refused: ") for line in told] == [True]  # tried once
    assert list(folder.failures()) == ["derived on negative 7"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_records(planned: list[Job], tmp_path: Path, results) -> None:
    toml = tmp_path / "b.toml"
    settings = ", ".join(f"{name} = {value}" for name, value in GRADIENT.items())
    toml.write_text(
        'model = "digits:mnist"\nconcepts = ["7"]\n'
        'methods = ["negative", {name = "esd", steps = 1, batch = 1, params = "full"}]\n'
        f'attacks = [{{name = "gradient", {settings}}}]\n'
        "seeds = {target = 2, others = 1, related = 1, attack = 2}\n"
    )
    reference = Folder(tmp_path / "reference")
    work(planned, reference, Here(reference, Store(tmp_path / "store")))
    out, home = tmp_path / "out", {**os.environ, "EFFACE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "efface", "bench", str(toml), "-o", str(out), "--jobs", "2"]
    for seconds in (4.0, 6.0, 8.0, 9.0, 10.0):
        process = subprocess.Popen(command, env=home, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
    subprocess.run(command, env=home, check=True, stdout=subprocess.DEVNULL)
    assert results(out) == results(reference.root)


def test_one_bench_at_a_time_in_a_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with folder.alone(), pytest.raises(BadInput, match="another bench"), Folder(tmp_path).alone():
        pass
    with folder.alone():
        pass


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:1", "refused"), ("nowhere", "HOST:PORT"), ("here:99999", "HOST:PORT")]
)
def test_a_cluster_that_nobody_answers_for(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BadInput, match=message):
        connect(address, 1.0)


def test_jobs_that_a_bench_no_longer_has_are_not_shown(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.make()
    planned = jobs(parse({"concepts": ["church"], "methods": ["uce"], "attacks": ["derived"]}), "id")
    folder.plan(planned)
    (one,) = (job for job in planned if job.what == "evaluation")
    (tmp_path / "failed" / "old.json").write_text('{"job": "old", "error": "x"}')
    folder.fail(one, "no disk", 2)
    assert folder.failures() == {one.label: "no disk"}
