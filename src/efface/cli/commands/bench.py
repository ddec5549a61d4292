"""`efface bench`: many methods, attacks and concepts, from one file."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check
from efface.cli.options import say
from efface.errors import BadInput, EffaceError

ORDER = 45
MAX_JOBS = 256
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The bench, .toml: model, concepts, methods, attacks.")
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


def run(file: FileArgument, output: Output = None, jobs: Jobs = 1, ray: Ray = "", list_only: List = False) -> None:
    """Erase, evaluate and attack: every method on every concept, and every attack on every edit.

    The same command again does what is missing, also after the file was extended. Each job that fails is tried twice.
    """
    if not 1 <= jobs <= MAX_JOBS:
        raise BadInput(f"--jobs {jobs}: from 1 to {MAX_JOBS}")
    if ray and jobs > 1:
        raise BadInput("--ray and --jobs: give one; a cluster has its own number of workers")
    if not file.is_file():
        raise BadInput(f"no bench file at {file}")
    where = output or Path("runs") / file.stem
    from efface.evaluation.bench import file as bench_file

    bench = bench_file.read(file)
    check.model(bench.model)
    from efface.evaluation.bench.folder import Folder
    from efface.evaluation.bench.jobs import jobs as plan
    from efface.evaluation.bench.work import Here, Processes, RayTasks, connect, work
    from efface.evaluation.store import Store
    from efface.models.model import Model

    if ray:
        connect(ray)  # before the model is loaded
    planned = plan(bench, Model.load(bench.model).id)
    folder, store = Folder(where), Store.default()
    if list_only:
        for job in planned:
            typer.echo(f"{'done ' if folder.done(job) else 'to do'}  {job.label}")
        return
    check.make_folder(where)
    with folder.alone():
        pool = (
            RayTasks(folder, store, ray) if ray else Processes(folder, store, jobs) if jobs > 1 else Here(folder, store)
        )
        outcome = work(planned, folder, pool, lambda line: typer.echo(line, err=True))
    line = f"{len(planned)} jobs: {outcome.before} were done, {outcome.done} done now, {len(outcome.failed)} failed"
    say(line, where)
    if outcome.failed:
        first = next(iter(outcome.failed.items()))
        raise EffaceError(f"{len(outcome.failed)} jobs failed; the first: {first[0]}: {first[1]}")
