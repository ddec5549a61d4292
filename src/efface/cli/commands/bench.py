"""`efface bench`: many methods, attacks and concepts, from one file or a paper's protocol."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli import check
from efface.cli.options import say
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efface.evaluation.bench.file import Bench
    from efface.evaluation.bench.folder import Folder
    from efface.evaluation.bench.jobs import Job

ORDER = 45
MAX_JOBS = 256
FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="The bench, .toml: model, concepts, methods, attacks; or a paper's: protocol:kpop-objects."
    ),
]
ModelFlag = Annotated[
    str, typer.Option("--model", "-m", help="The model, in place of the file's.", show_default="the file's, or mini")
]
DataFlag = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=FILE…", help="Your files that the bench asks for by name: i2p=i2p.csv."),
]
JudgeFlag = Annotated[
    str, typer.Option("--judge", help="Who decides, in place of the file's.", show_default="the file's, or the model's")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder of the results.", show_default="runs/ + the file's name"
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Processes on this machine.")]
Ray = Annotated[
    str,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Do the jobs on a Ray cluster: its address, auto, or local.", show_default="no"
    ),
]
List = Annotated[bool, typer.Option("--list", help="Only say which jobs there are and which are done.")]


def run(
    file: FileArgument, output: Output = None, jobs: Jobs = 1, ray: Ray = "", list_only: List = False,
    model: ModelFlag = "", data: DataFlag = None, judge: JudgeFlag = "",
) -> None:  # fmt: skip
    """Erase, evaluate and attack: every method on every concept, and every attack on every edit.

    The same command again does what is missing, also after the file was extended. Each job that fails is tried twice.
    """
    check_workers(jobs, ray)
    given = files(data or ())
    if model:
        check.model(model)
    where, bench = _read(file, model, given)
    if judge:
        bench = replace(bench, judge=checked_judge(bench.model, judge))
    check.model(bench.model)
    from efface.evaluation.bench.folder import Folder
    from efface.evaluation.bench.jobs import jobs as plan
    from efface.evaluation.bench.run import judge_for
    from efface.models.model import Model

    if ray:
        from efface.evaluation.bench.work import connect

        connect(ray)  # before the model is loaded
    planned = plan(bench, Model.load(bench.model).id)
    folder = Folder(output or where)
    if list_only:
        for job in planned:
            typer.echo(f"{'done ' if folder.done(job) else 'to do'}  {job.label}")
        return
    judge_for(next(job for job in planned if job.what == "evaluation"))  # what it lacks is said before the first edit
    do(planned, folder, jobs, ray)


def _read(file: str, model: str, data: dict[str, Path]) -> "tuple[Path, Bench]":
    """Return where results go, and the bench of a file, of a protocol by its name, or of a protocol's file."""
    from efface.evaluation import protocol
    from efface.evaluation.bench import file as bench_file

    path = protocol.locate(file)
    if not protocol.is_protocol(path):
        return Path("runs") / path.stem, bench_file.read(path, model, data)
    size = model or "mini"
    return Path("runs") / f"{path.stem}-{Path(size).stem}".replace(":", "-"), protocol.read(path, size, data)


def check_workers(jobs: int, ray: str = "") -> None:
    """Refuse a number of processes out of range, and two kinds of workers. Raises `BadInput`."""
    if not 1 <= jobs <= MAX_JOBS:
        raise BadInput(f"--jobs {jobs}: from 1 to {MAX_JOBS}")
    if ray and jobs > 1:
        raise BadInput("--ray and --jobs: give one; a cluster has its own number of workers")


def files(given: "Sequence[str]") -> dict[str, Path]:
    """Read "name=file" pairs. Raises `BadInput` for one that is none, for a name twice, and for a file not there."""
    found: dict[str, Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name.strip() and equals and path):
            raise BadInput(f"--data {one[:200]}: write NAME=FILE, such as i2p=i2p.csv")
        if name in found:
            raise BadInput(f"--data {name}: given twice")
        if not Path(path).exists():
            raise BadInput(f"--data {name}: no file {path[:200]}")
        found[name] = Path(path)
    return found


def checked_judge(model: str, judge: str) -> str:
    """Return a judge's name as it is. Raises `BadInput` or `UnknownName` for one that the model has not."""
    from efface.judge import find_judge

    find_judge(model, judge)
    return judge


def do(planned: "Sequence[Job]", folder: "Folder", jobs: int, ray: str = "", lenient: bool = False) -> None:
    """Do what is missing of some jobs and say how many were done.

    lenient: whether a failed job is only noted. Raises `EffaceError` with the first one otherwise.
    """
    from efface.evaluation.bench.work import Here, Processes, RayTasks, work
    from efface.evaluation.store import Store

    check.make_folder(folder.root)
    store = Store.default()
    with folder.alone():
        folder.plan(planned)
        pool = (
            RayTasks(folder, store, ray) if ray else Processes(folder, store, jobs) if jobs > 1 else Here(folder, store)
        )
        outcome = work(planned, folder, pool, lambda line: typer.echo(line, err=True))
    line = f"{len(planned)} jobs: {outcome.before} were done, {outcome.done} done now, {len(outcome.failed)} failed"
    line += f", {len(outcome.refused)} refused" if outcome.refused else ""
    say(line, folder.root)
    if outcome.failed and not lenient:
        first = next(iter(outcome.failed.items()))
        raise EffaceError(f"{len(outcome.failed)} jobs failed; the first: {first[0]}: {first[1]}")
