"""What benchmarks that are benches share: do what is missing of one, and keep its records where git does."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efface import registry
from efface.errors import BadFile
from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.bench import file as bench_file
from efface.evaluation.bench.file import Bench, Chosen
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
README = HERE.parent / "README.md"
FOLDER = HERE.parent / "build" / "bench"  # outside git; benches share the edits in it
ENDS = ("", "-attacks")  # of the names of files on record
Results = tuple[list[Scored], list[AttackRecord]]


def arguments(description: str | None, names: str = "") -> argparse.Namespace:
    """Read the flags that all of them have. names: the help of a list of names, which then may be given as well."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes; each computes on its share of the cores")
    parser.add_argument(
        "--only", nargs="*", default=[], help="concepts to do now, A+B for two erased at once; other records stay"
    )
    parser.add_argument("--again", action="store_true", help="measure again what is on record")
    parser.add_argument("--pages", action="store_true", help="only write the pages anew, from what is on record")
    if names:
        parser.add_argument("names", nargs="*", help=names)
    return parser.parse_args()


def read_bench(name: str) -> Bench:
    """Return the bench of a file beside this one."""
    return bench_file.read(HERE / f"{name}.toml")


def run(name: str, options: argparse.Namespace) -> None:
    """Do what is missing of the bench of a file beside this one, and keep its records."""
    run_bench(name, read_bench(name), options)


def run_bench(name: str, bench: Bench, options: argparse.Namespace) -> None:
    """Do what is not on record of a bench and put its records, without rows for images, into records/.

    What was done is kept also when it stops half-way; edits are made again only where something on them is missing.
    """
    jobs = planned(bench, Model.load(bench.model).id)
    folder, store = Folder(FOLDER), Store.default()
    known = _kept(name)
    todo = [job for job in jobs if job.what != "edit" and (options.again or job.id not in known)]
    if options.only:
        todo = [job for job in todo if "+".join(concept.name for concept in job.concepts) in options.only]
    needed = {job.edit_job.id for job in todo}
    todo = [job for job in jobs if job.id in needed] + todo
    with _threads(max(1, (os.cpu_count() or 1) // options.jobs)), folder.alone():
        for job in todo if options.again else ():
            folder.path(job).unlink(missing_ok=True)
        pool = Processes(folder, store, options.jobs) if options.jobs > 1 else Here(folder, store)
        try:
            outcome = work(todo, folder, pool, lambda line: print(line, flush=True))
            ended = f"{len(outcome.failed)} failed, {len(outcome.refused)} refused"
            print(f"{name}: {len(todo)} of {len(jobs)} jobs were missing, {ended}", flush=True)
        finally:
            keep(name, jobs, known | _made(folder, jobs))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let processes that are started inside the block compute on so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _made(folder: Folder, jobs: Sequence[Job]) -> dict[str, str]:
    """Return the records that a folder holds of some jobs, as lines of JSON, by job id."""
    found = {}
    for job in jobs:
        if job.what != "edit" and folder.done(job):
            one = folder.attacks([job])[0] if job.what == "attack" else folder.records([job])[0]
            found[job.id] = (one.aggregate() if isinstance(one, Record) else one).model_dump_json()
    return found


def _kept(name: str) -> dict[str, str]:
    """Return the lines on record of a bench by job id; the ids are in a file beside the lines.

    Raises `BadFile` when the two do not belong together.
    """
    found = {}
    for end in ENDS:
        lines, ids = (HERE / "records" / f"{name}{end}.{kind}" for kind in ("jsonl", "ids"))
        if ids.exists():
            keys, values = (path.read_text(encoding="utf-8").splitlines() for path in (ids, lines))
            if len(keys) != len(values):
                raise BadFile(f"{ids.name} names {len(keys)} jobs, {lines.name} has {len(values)} lines: restore both")
            found |= dict(zip(keys, values, strict=True))
    return found


def keep(name: str, jobs: Sequence[Job], lines: Mapping[str, str]) -> None:
    """Write lines, by job id, in the order of the jobs: evaluations to records/NAME.jsonl, attacks to NAME-attacks."""
    for end, what in zip(ENDS, ("evaluation", "attack"), strict=True):
        ids = [job.id for job in jobs if job.what == what and job.id in lines]
        if ids:
            _write(HERE / "records" / f"{name}{end}.jsonl", [lines[one] for one in ids])
            _write(HERE / "records" / f"{name}{end}.ids", ids)


def _write(path: Path, lines: list[str]) -> None:
    with writing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def put_in(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between the markers of a name in a page of the docs or the README."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    with writing(page) as temporary:
        temporary.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1], encoding="utf-8")


def settings(chosen: Chosen) -> dict[str, Any]:
    """Return all fields of a method or an attack as records hold them."""
    return json.loads(json.dumps(registry.to_json(chosen.make())["fields"]))


def written(chosen: Chosen) -> str:
    """Return the fields that were given, "lr 0.0004, prompts all"."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in chosen.fields
    )


def on_record(name: str) -> Results:
    """Return what is on record of a bench: evaluations and attacks."""
    scored, attacked = (HERE / "records" / f"{name}{end}.jsonl" for end in ENDS)
    attacks = attacked.read_text(encoding="utf-8").splitlines() if attacked.exists() else []
    return (
        list(read(scored)) if scored.exists() else [],
        [AttackRecord.model_validate_json(line) for line in attacks],
    )
