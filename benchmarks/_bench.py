"""What benchmarks that are benches share: do what is missing of one, and keep its records where git does."""

import argparse
import os
from pathlib import Path

from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.bench import file as bench_file
from efface.evaluation.bench.file import Bench
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.bench.jobs import jobs as planned
from efface.evaluation.bench.work import Here, Processes, work
from efface.evaluation.record import Record, Scored, read
from efface.evaluation.store import Store
from efface.models.model import Model
from efface.util.files import writing

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
FOLDER = HERE.parent / "build" / "bench"  # outside git; benches share the edits in it
Results = tuple[list[Scored], list[AttackRecord]]


def arguments(description: str | None, names: str = "") -> argparse.Namespace:
    """Read the flags that all of them have. names: the help of a list of names, which then may be given as well."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes; each computes on its share of the cores")
    parser.add_argument("--pages", action="store_true", help="only write the pages anew, from what is on record")
    if names:
        parser.add_argument("names", nargs="*", help=names)
    return parser.parse_args()


def read_bench(name: str) -> Bench:
    """Return the bench of a file beside this one."""
    return bench_file.read(HERE / f"{name}.toml")


def run(name: str, processes: int) -> None:
    """Do what is missing of the bench of a file beside this one, and keep its records."""
    run_bench(name, read_bench(name), processes)


def run_bench(name: str, bench: Bench, processes: int) -> None:
    """Do what is missing of a bench, then put its records, without rows for images, into records/."""
    jobs = planned(bench, Model.load(bench.model).id)
    folder, store = Folder(FOLDER), Store.default()
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))  # of the processes started below
    with folder.alone():
        pool = Processes(folder, store, processes) if processes > 1 else Here(folder, store)
        outcome = work(jobs, folder, pool, lambda line: print(line, flush=True))
    print(f"{name}: {len(jobs)} jobs, {outcome.before} were done, {len(outcome.failed)} failed", flush=True)
    keep(name, folder, jobs)


def keep(name: str, folder: Folder, jobs: list[Job]) -> None:
    """Write the records of some jobs to records/NAME.jsonl, and those of attacks to records/NAME-attacks.jsonl."""
    scored = [one.aggregate() if isinstance(one, Record) else one for one in folder.records(jobs)]
    _lines(HERE / "records" / f"{name}.jsonl", [one.model_dump_json() for one in scored])
    _lines(HERE / "records" / f"{name}-attacks.jsonl", [one.model_dump_json() for one in folder.attacks(jobs)])


def _lines(path: Path, lines: list[str]) -> None:
    if lines:
        with writing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def on_record(name: str) -> Results:
    """Return what is on record of a bench: evaluations and attacks."""
    scored, attacked = (HERE / "records" / f"{name}{end}.jsonl" for end in ("", "-attacks"))
    attacks = attacked.read_text(encoding="utf-8").splitlines() if attacked.exists() else []
    return (
        list(read(scored)) if scored.exists() else [],
        [AttackRecord.model_validate_json(line) for line in attacks],
    )
