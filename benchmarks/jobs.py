"""What a job of a bench costs in one process, in two, and as Ray tasks on two workers: the start, and each job after.

The same small jobs (edits of one step on the digits, and their evaluations of a few images) are done by each kind of
worker, into folders of their own. A short and a long bench tell the start from what each job adds; kinds take turns.

    python benchmarks/jobs.py [--rounds 3] [--record]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from efface.edits.provenance import git, versions
from efface.evaluation.bench.file import parse
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.bench.jobs import jobs as planned
from efface.evaluation.bench.work import Here, Pool, Processes, RayTasks, work
from efface.evaluation.store import Store
from efface.models.model import Model
from efface.util.files import writing

RECORD = Path(__file__).resolve().parent / "records" / "jobs.json"
MODEL = "digits:mnist"
KINDS: dict[str, Callable[[Folder, Store], Pool]] = {
    "one process": Here,
    "two processes": lambda folder, store: Processes(folder, store, 2),
    "Ray, two workers": lambda folder, store: RayTasks(folder, store, "local"),
}


def bench(concepts: int) -> list[Job]:
    """Return the jobs of a bench over some digits: for each, three edits and their evaluations."""
    esd = {"name": "esd", "steps": 1, "batch": 1, "params": "full"}
    parsed = parse(
        {
            "model": MODEL,
            "concepts": [str(digit) for digit in range(concepts)],
            "methods": ["negative", esd, esd | {"lr": 1e-6}],
            "seeds": {"target": 4, "others": 1, "related": 1},
        }
    )
    return planned(parsed, Model.load(MODEL).id)


def seconds(pool: Callable[[Folder, Store], Pool], jobs: list[Job]) -> float:
    """Return how long some workers take for a bench of which nothing is there, with their start and their end."""
    with tempfile.TemporaryDirectory() as root:
        folder = Folder(Path(root) / "bench")
        began = time.perf_counter()
        outcome = work(jobs, folder, pool(folder, Store(Path(root) / "store")))
        taken = time.perf_counter() - began
    if outcome.failed or outcome.done != len(jobs):
        raise SystemExit(f"{outcome.done} of {len(jobs)} jobs done, failed: {outcome.failed}")
    return taken


def main() -> None:
    """Time every kind of worker, and print and record the start and the cost of a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # its start is not the bench's
    short, long = bench(1), bench(10)
    seconds(Here, short)  # loads the model into this process, which only the first kind uses
    found: dict[str, dict[str, list[float]]] = {kind: {"short": [], "long": []} for kind in KINDS}
    for _ in range(options.rounds):
        for kind, pool in KINDS.items():
            found[kind]["short"].append(seconds(pool, short))
            found[kind]["long"].append(seconds(pool, long))
    rows = {}
    for kind, taken in found.items():
        few, many = median(taken["short"]), median(taken["long"])
        each = (many - few) / (len(long) - len(short))
        rows[kind] = {"start_seconds": round(few - each * len(short), 2), "seconds_a_job": round(each, 3)}
        print(f"{kind}: {rows[kind]['start_seconds']} s to start, {rows[kind]['seconds_a_job']} s a job")
    if options.record:
        ray_each, process_each = (rows[kind]["seconds_a_job"] for kind in ("Ray, two workers", "two processes"))
        record = {
            "jobs": [len(short), len(long)], "rounds": options.rounds, "workers": rows,
            "ray_to_processes": round(ray_each / process_each, 2),
            "versions": versions(), "git": git(),
        }  # fmt: skip
        with writing(RECORD) as path:
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
