"""What a job costs beside its own work: in this process, in processes, and as tasks of a local Ray cluster.

The jobs are alike and short: guards on the digits' model, a few images each, with no image in the store beforehand. The
first quarter of the results is left out, since workers import torch before their first.

    python benchmarks/jobs.py [--count 48]    # writes records/jobs.json; needs the package ray
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from efface.edits.provenance import git, versions
from efface.evaluation.bench.file import parse
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.bench.jobs import jobs as planned
from efface.evaluation.bench.work import Here, Pool, Processes, RayTasks
from efface.evaluation.store import Store
from efface.models.model import Model
from efface.util.files import writing

RECORD = Path(__file__).parent / "records" / "jobs.json"
WORKERS = 2


def short(count: int) -> list[Job]:
    """Return so many evaluations that differ in their seed; a guard needs no training."""
    bench: dict[str, Any] = {
        "model": "digits:mnist",
        "concepts": ["7"],
        "methods": ["negative"],
        "metrics": [],
        "seeds": {"target": 8, "others": 2, "related": 2, "method": list(range(count))},
    }
    found = planned(parse(bench), Model.load("digits:mnist").id)
    return [job for job in found if job.what == "evaluation"]


def per_job(pool: Pool, todo: Sequence[Job]) -> float:
    """Return wall seconds between two results, after the first quarter of them."""
    ended = []
    try:
        for job, error in pool.results(todo):
            assert not error, f"{job.label}: {error}"
            ended.append(time.perf_counter())
    finally:
        pool.close()
    first = len(ended) // 4
    return (ended[-1] - ended[first]) / (len(ended) - 1 - first)


def measure(make: Callable[[Folder, Store], Pool], todo: Sequence[Job]) -> float:
    """Time all jobs in an empty folder with an empty store."""
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(Path(place) / "run")
        folder.make()
        return per_job(make(folder, Store(Path(place) / "store")), todo)


def main() -> None:
    """Measure the three in one run and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48, help="jobs")
    todo = short(parser.parse_args().count)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    alone = measure(Here, todo)
    pools: dict[str, Callable[[Folder, Store], Pool]] = {
        "processes": lambda folder, store: Processes(folder, store, WORKERS),
        "ray": lambda folder, store: RayTasks(folder, store, "local"),
    }
    found: dict[str, Any] = {"serial": {"seconds": round(alone, 4)}}
    for name, make in pools.items():
        seconds = measure(make, todo)
        more = WORKERS * seconds - alone  # what a worker spends on a job beyond the job
        found[name] = {"seconds": round(seconds, 4), "overhead": round(more, 4), "speedup": round(alone / seconds, 2)}
    record = {
        "jobs": len(todo), "workers": WORKERS, "cores": os.cpu_count(), "wall_seconds_a_job": found,
        "processor": platform.processor() or platform.machine(), "versions": versions(), "git": git(),
    }  # fmt: skip
    with writing(RECORD) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
