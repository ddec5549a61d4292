"""Run every method of methods.toml on mini and judge it; one JSON line a job in records/methods.jsonl.

A stopped run goes on where it was. Each process runs one job at a time on one thread.

    python benchmarks/methods.py [--only METHOD] [--workers 2]    # run what is missing, then write the table
    python benchmarks/methods.py --table                          # write docs/methods/results.md from the record
    python benchmarks/methods.py --sheets                         # draw a sheet of pictures for each method
"""

import argparse
import multiprocessing
import os
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from efface import registry
from efface.concept import Concept, table
from efface.edits.provenance import git, versions
from efface.evaluation.evaluate import evaluate, sampling_of
from efface.evaluation.prompts import Plan, preserved
from efface.evaluation.record import Aggregate, Base, Made, Record, Scored, read
from efface.judge import judge_of
from efface.models.model import Model

HERE = Path(__file__).parent
SETUP = tomllib.loads((HERE / "methods.toml").read_text())
RECORDS = HERE / "records" / "methods.jsonl"
EDITS = HERE.parent / "build" / "edits"  # outside git
FIVE = ("five", "five, others kept")


class Job(NamedTuple):
    """One row of the record: a method with a preset, and a concept or one of the two settings of five."""

    method: str
    preset: str
    setting: str

    @property
    def path(self) -> Path:
        """Return where its edit is kept."""
        return EDITS / f"{self.method}-{self.preset or 'default'}-{self.setting}.safetensors".replace(" ", "_")


def jobs() -> Iterator[Job]:
    """Yield every job, concept by concept, so that a partial record holds all methods."""
    for setting in (*SETUP["objects"], *SETUP["styles"], *FIVE):
        for entry in SETUP["method"]:
            if runs(entry, setting):
                yield Job(entry["name"], entry.get("preset", ""), setting)


def runs(entry: dict[str, Any], setting: str) -> bool:
    """Return whether a row of the table has a job in a setting."""
    if setting in FIVE:
        return entry.get("five") in ("both", setting)
    return ("objects" if setting in SETUP["objects"] else "styles") in entry.get("settings", ("objects", "styles"))


def records() -> list[Record | Aggregate]:
    """Read the records on disk that hold results. Raises BadFile."""
    return [record for record in read(RECORDS) if not record.error] if RECORDS.exists() else []


def plan() -> Plan:
    """Return the evaluation's prompts and seeds."""
    counts: dict[str, int] = dict(SETUP["plan"])
    steps = counts.pop("steps")
    seeds: dict[str, Any] = {name: tuple(range(n)) for name, n in counts.items()}
    return Plan(steps=steps, **seeds)


@cache
def mini() -> tuple[Model, dict[str, Concept]]:
    """Load the model that is edited once a process."""
    torch.set_num_threads(1)
    return Model.load("mini"), table("mini")


@cache
def drawn() -> Model:
    """Load the model that draws what is judged: the same in bfloat16, which is judged alike and takes half the time."""
    return Model.load("mini", dtype=torch.bfloat16)


def concepts(job: Job, known: dict[str, Concept]) -> tuple[list[Concept], tuple[Concept, ...]]:
    """Return what a job erases and what it preserves."""
    if job.setting not in FIVE:
        concept = known[job.setting]
        return [concept], preserved(concept, known)
    ten = [known[name] for name in SETUP["objects"]]
    return ten[:5], tuple(ten[5:]) if "kept" in job.setting else ()


def run(job: Job) -> Record:
    """Erase, judge and measure one job; a job that fails gives a record without rows that says why."""
    model, known = mini()
    erase, preserve = concepts(job, known)
    try:
        edit = registry.get("methods", job.method).preset(job.preset)(model, erase, preserve, seed=0)
        edit.save(job.path)
        record = evaluate(drawn(), edit, erase, known, judge_of("mini"), plan(), any_base=True)
        return record.model_copy(update={"name": job.setting})
    except Exception as error:  # one job that fails must not stop an hour of others
        return failed(job, erase, f"{type(error).__name__}: {error}")


def failed(job: Job, erase: list[Concept], error: str) -> Record:
    """Return the record of a job that gave no images."""
    names = tuple(concept.name for concept in erase)
    made = Made(id="", method=job.method, preset=job.preset, seed=0, erased=names)
    base, sampling = Base(name="mini", id=drawn().id), sampling_of(drawn(), plan())
    return Record(
        name=job.setting, concepts=names, model=base, edit=made, evaluator=judge_of("mini").profile, sampling=sampling,
        versions=versions(), git=git(), error=error,
    )  # fmt: skip


def key(record: Scored) -> Job:
    """Return the job that a record is of."""
    return Job(record.edit.method, record.edit.preset, record.name)


def leave_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="these methods only, with commas between them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=10**6, help="at most this many jobs")
    parser.add_argument("--table", action="store_true", help="write the table of what is on record and stop")
    parser.add_argument("--sheets", action="store_true", help="draw the sheets of pictures and stop")
    options = parser.parse_args()
    if not (options.table or options.sheets):
        RECORDS.parent.mkdir(exist_ok=True)
        EDITS.mkdir(parents=True, exist_ok=True)
        only = options.only.split(",") if options.only else []
        done = {key(record) for record in records()}
        todo = [job for job in jobs() if job not in done and (not only or job.method in only)][: options.limit]
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes started below
        context = multiprocessing.get_context("spawn")
        leave = {"initializer": leave_with, "initargs": (os.getpid(),)}
        with ProcessPoolExecutor(options.workers, mp_context=context, **leave) as pool:
            running = {pool.submit(run, job): job for job in todo}
            for i, future in enumerate(as_completed(running), 1):
                name = " ".join(running[future])
                record = future.result()
                record.append(RECORDS)
                target = record.summaries.get("target")
                told = f"target {target.after.value:.2f}" if target else f"failed: {record.error}"
                print(f"{i} of {len(todo)}: {name}: {told}", flush=True)
    from _methods_page import sheets, write

    if options.sheets:
        sheets()
    else:
        write(records())


if __name__ == "__main__":
    main()
