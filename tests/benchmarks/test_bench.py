"""Records of benches: what is on record is not done again, and what was done before a stop is kept."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from efface.concept import Concept
from efface.errors import BadFile

bench: Any = import_module("_bench")

CONCEPTS = [(Concept("church"),), (Concept("dog"), Concept("cat"))]
EDITS = [SimpleNamespace(id=f"edit{n}", what="edit", concepts=CONCEPTS[n]) for n in (0, 1)]
OTHERS = [
    SimpleNamespace(id=f"{what}{n}", what=what, edit_job=EDITS[n], concepts=CONCEPTS[n])
    for n in (0, 1)
    for what in ("evaluation", "attack")
]


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Plan two edits, each judged and attacked; return the ids of the jobs that were done, in order."""
    finished: list[str] = []

    def work(jobs, *_):
        for job in jobs:
            if job.id == "attack1":
                raise KeyboardInterrupt
            finished.append(job.id)
        return SimpleNamespace(failed={}, refused={})

    (tmp_path / "records").mkdir()
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    monkeypatch.setattr(bench, "planned", lambda *_: [*EDITS, *OTHERS])
    monkeypatch.setattr(bench.Model, "load", lambda _: SimpleNamespace(id=""))
    monkeypatch.setattr(bench, "work", work)
    monkeypatch.setattr(bench.Folder, "path", lambda _, job: tmp_path / job.id)
    monkeypatch.setattr(
        bench, "_made", lambda _, jobs: {j.id: f'"{j.id}"' for j in jobs if j.id in finished and j.what != "edit"}
    )
    return finished


def run(again: bool = False, only: tuple[str, ...] = ()) -> None:
    bench.run_bench("it", SimpleNamespace(model=""), SimpleNamespace(jobs=1, again=again, only=only))


def once(again: bool = False) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(again)


def test_a_stopped_bench_goes_on_from_its_records(done, tmp_path):
    once()
    assert done == ["edit0", "edit1", "evaluation0", "attack0", "evaluation1"]
    done.clear()
    once()
    assert done == ["edit1"], "only the edit that the missing attack needs"
    done.clear()
    once(again=True)
    assert done == ["edit0", "edit1", "evaluation0", "attack0", "evaluation1"]
    lines, ids = ((tmp_path / "records" / f"it-attacks.{end}").read_text().split() for end in ("jsonl", "ids"))
    assert lines == ['"attack0"']
    assert ids == ["attack0"]


def test_concepts_erased_at_once_are_named_together(done):
    run(only=("dog", "cat"))
    assert done == []
    with pytest.raises(KeyboardInterrupt):
        run(only=("dog+cat",))
    assert done == ["edit1", "evaluation1"]


def test_only_some_concepts(done, tmp_path):
    run(only=("church",))
    run(only=("church",))
    assert done == ["edit0", "evaluation0", "attack0"]
    assert (tmp_path / "records" / "it.ids").read_text().split() == ["evaluation0"]
    once()
    assert done[3:] == ["edit1", "evaluation1"]


def test_measuring_some_again_leaves_the_others_on_record(done, tmp_path):
    once()
    stale = tmp_path / "evaluation0"
    stale.write_text("an old result")
    done.clear()
    run(again=True, only=("church",))
    assert done == ["edit0", "evaluation0", "attack0"]
    assert not stale.exists(), "or it would be taken for the new one"
    assert (tmp_path / "records" / "it.ids").read_text().split() == ["evaluation0", "evaluation1"]


def test_ids_and_lines_that_do_not_belong_together(done, tmp_path):
    once()
    (tmp_path / "records" / "it.ids").write_text("evaluation0\n")
    with pytest.raises(BadFile, match="names 1 jobs"):
        run()


def test_records_of_jobs_that_are_no_longer_planned_go(done, tmp_path, monkeypatch):
    once()
    monkeypatch.setattr(bench, "planned", lambda *_: [EDITS[1], *OTHERS[2:]])
    once()
    assert (tmp_path / "records" / "it.jsonl").read_text().split() == ['"evaluation1"']
