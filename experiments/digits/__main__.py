"""`python -m experiments.digits …`: the experiment on digits, where every prompt can be tried."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli import check, parse
from efface.cli.app import main
from efface.cli.options import with_flags
from efface.digits.classes import CLASSES
from efface.errors import BadInput, unknown

if TYPE_CHECKING:
    from experiments.digits.experiment import Experiment

NAMES = ("original", "fine-tuned", "fixed prompts", "prompt layers", "task vector")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Erase a digit from a model whose prompt is 8 numbers, and try every prompt of a grid.",
)

Dataset = Annotated[str, typer.Option("--dataset", help="mnist or fashion.")]
TargetFlag = Annotated[str, typer.Option("--target", help="The class that is erased.")]
Folder = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Edits, checkpoints and records.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FOLDER", help="The trained networks.", show_default="those that ship"),
]
ModelsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="original, fine-tuned, fixed prompts, prompt layers or task vector; may be given again.",
        show_default="all",
    ),
]
Alphas = Annotated[
    list[float] | None,
    typer.Option("--alpha", help="Length of the task vector; may be given again.", show_default="table 1's"),
]
SeedFlag = Annotated[int, typer.Option("--seed", help="Seed of the search.")]


@dataclass(frozen=True)
class Place:
    """The flags of every command about one experiment: its fields are the flags."""

    dataset: Dataset = "mnist"
    target: TargetFlag = "0"
    folder: Folder = Path("digits")
    weights: Weights = None
    training_seed: Annotated[int, typer.Option("--training-seed", help="Seed of the edits' training.")] = 0

    def experiment(self) -> "Experiment":
        """Check all that can be checked without torch, then make the experiment."""
        _known(self.dataset)
        check.make_folder(self.folder)
        from efface.digits import pipeline
        from experiments.digits.experiment import Experiment

        return Experiment(self.dataset, self.target, self.folder, self.weights or pipeline.WEIGHTS, self.training_seed)


@dataclass(frozen=True)
class Attacked:
    """The flags of every search: the models that are attacked, and the seed."""

    model: ModelsFlag = None
    alpha: Alphas = None
    seed: SeedFlag = 0

    def names(self) -> tuple[str, ...]:
        """Return the models; raises `UnknownName`."""
        return known_models(self.model)


@app.command()
def train(
    dataset: Dataset = "mnist",
    folder: Folder = Path("digits/training"),
    weights: Annotated[Path, typer.Option("--weights", metavar="FOLDER", help="Where to write them.")] = Path(
        "digits/weights"
    ),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="IDX files of the data set.", show_default="as it ships"),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch all of MNIST through torchvision first.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the denoiser's training.")] = 0,
    judges: Annotated[
        Path | None,
        typer.Option("--judges", metavar="FILE", help="Take the judges of these weights, train none."),
    ] = None,
) -> None:
    """Train the denoiser, its table of prompts and two judges of a data set; goes on where it was stopped."""
    _known(dataset)
    if download and dataset != "mnist":
        raise BadInput("--download fetches MNIST; install Debian's dataset-fashion-mnist for the other one")
    for path in (folder, weights):
        check.make_folder(path)
    from experiments.digits import data as source
    from experiments.digits.training import train as run

    typer.echo(run(dataset, folder / dataset, weights, source.fetch_mnist(folder) if download else data, seed, judges))


@app.command()
@with_flags(Place, "place")
def table1(
    place: Place,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Pictures of each other class; the target gets nine times.")
    ] = 120,
    model: ModelsFlag = None,
) -> None:
    """Make the edits, choose alpha, and judge target and other classes in all models."""
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: at least 1")
    names = known_models(model)
    experiment = place.experiment()
    from experiments.digits.page import sides
    from experiments.digits.runs import run_table1, written

    lengths, records = run_table1(experiment, seeds, names)
    typer.echo(f"{'':14}{'target class':>30}{'other classes':>30}")
    rows = sides(records)
    for row in rows:
        typer.echo(f"{row.name:14}" + "".join(f"{written(share):>30}" for share in (row.target, row.others)))
    if rows:
        vector = f"; alpha = {lengths.chosen:g}" if lengths else ""
        typer.echo(f"n = {rows[0].target.n} and {rows[0].others.n}{vector}")
    typer.echo(experiment.records.path("table1", ".jsonl"))


@app.command()
@with_flags(Place, "place")
@with_flags(Attacked, "attacked")
def search(
    place: Place,
    attacked: Attacked,
    levels: Annotated[
        str, typer.Option("--levels", help="Values of each number: 2:6 is 2 to 5; L = 6 takes hours.")
    ] = "2:6",
    gradient: Annotated[bool, typer.Option(help="Also search by gradient ascent.")] = True,
) -> None:
    """Find the prompt that brings the class back most often, among all of a grid and by gradient."""
    names, grids = attacked.names(), parse.seeds(levels)
    if not all(2 <= level <= 6 for level in grids):
        raise BadInput(f"--levels {levels}: from 2 to 6")
    experiment = place.experiment()
    from experiments.digits.page import smallest_grids
    from experiments.digits.runs import run_search

    found = run_search(experiment, names, attacked.alpha or (), grids, gradient, attacked.seed, report=typer.echo)
    for name, smallest in smallest_grids(found).items():
        levels_of = ", ".join(f"{epsilon}: {one.level or '-'}" for epsilon, one in smallest.items())
        typer.echo(f"L_uncond of {name}, by epsilon: {levels_of}")
    typer.echo(experiment.records.path("search"))


@app.command()
@with_flags(Place, "place")
@with_flags(Attacked, "attacked")
def inversion(place: Place, attacked: Attacked) -> None:
    """Learn the prompt that fits pictures of the erased class best, in every model."""
    names = attacked.names()
    experiment = place.experiment()
    from experiments.digits.runs import line_of, run_inversion

    for line in run_inversion(experiment, names, attacked.alpha or (), attacked.seed).inversion.values():
        typer.echo(line_of(line, "inversion"))
    typer.echo(experiment.records.path("search"))


@app.command()
@with_flags(Place, "place")
@with_flags(Attacked, "attacked")
def bound(place: Place, attacked: Attacked) -> None:
    """Bound what any prompt of the sphere can bring back, searched or not; search first."""
    names = attacked.names()
    experiment = place.experiment()
    from experiments.digits.runs import bound_line, run_bound

    found = run_bound(experiment, names, attacked.alpha or (), attacked.seed)
    for line in found.bound.values():
        typer.echo(bound_line(line, found))
    typer.echo(experiment.records.path("search"))


@app.command()
def page(
    folder: Folder = Path("digits"),
    records: Annotated[
        Path | None,
        typer.Option(
            "--records",
            metavar="FILE",
            help="Records that benchmarks.digits made one file of; no pictures.",
            show_default="the folder's",
        ),
    ] = None,
    weights: Weights = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page.", show_default="index.html in it")
    ] = None,
) -> None:
    """Write one page about every experiment whose records are in the folder."""
    path = output or folder / "index.html"
    check.output(path, ".html")
    from experiments.digits.page import write

    typer.echo(write(records or folder, path, weights).resolve())


def known_models(given: list[str] | None) -> tuple[str, ...]:
    """Return the models that were given, by default all; raises `UnknownName`."""
    for name in given or ():
        if name not in NAMES:
            raise unknown("model", name, NAMES)
    return tuple(given or NAMES)


def _known(dataset: str) -> None:
    if dataset not in CLASSES:
        raise unknown("data set", dataset, CLASSES)


if __name__ == "__main__":
    main(None, app, "python -m experiments.digits")
