"""`efface generate` and `efface compare`: labelled sheets of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from efface.cli import check, parse
from efface.cli.options import (
    AnyBaseFlag,
    BatchFlag,
    DeviceFlag,
    DtypeFlag,
    EditFlag,
    GuidanceFlag,
    ModelFlag,
    SeedsFlag,
    SolverFlag,
    StepsFlag,
    TokenizerFlag,
    check_dtype,
    load_model,
    queries,
    sampling,
    say,
)
from efface.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from efface.edit import Edit
    from efface.model import Model

Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT…", help="What to draw; one row each.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The picture to write, .png.")]

MAX_IMAGES = 4096  # a sheet of more is no picture any more


class Variadic(typer.core.TyperCommand):
    """Let --edit and --concept take several values in a row."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, parse.spread(args, ("--edit", "-e", "--concept", "-c")))


def generate(
    prompts: Prompts,
    edit: EditFlag = None,
    seeds: SeedsFlag = "0",
    output: Output = Path("sheet.png"),
    model: ModelFlag = "mini",
    steps: StepsFlag = None,
    guidance: GuidanceFlag = None,
    solver: SolverFlag = None,
    batch: BatchFlag = 32,
    device: DeviceFlag = "cpu",
    dtype: DtypeFlag = "fp32",
    tokenizer: TokenizerFlag = None,
    any_base: AnyBaseFlag = False,
) -> None:
    """Draw prompts, one image per seed, with all the given edits applied together.

    One prompt and one seed give the bare image, anything more a labelled sheet.
    """
    given, numbers, edits = _checked(prompts, model, edit, seeds, output, (steps, guidance, solver, batch), dtype)
    total = parse.load([term for terms in edits for term in terms]) if edits else None
    loaded = load_model(model, device, dtype, tokenizer)
    images = draw(loaded, total, prompts, numbers, given, batch, any_base)
    from efface.report import grid

    if len(prompts) == len(numbers) == 1:
        grid.save(grid.to_image(images[0]), output)
    else:
        rows = images.unflatten(0, (len(prompts), len(numbers)))
        cells = [[cell[None] for cell in row] for row in rows]
        grid.save(grid.sheet(cells, rows=prompts, columns=[f"seed {n}" for n in numbers]), output)
    say(f"drew {len(images)} image{'s' * (len(images) > 1)} with {model}", output)


def compare(
    prompts: Prompts,
    edit: EditFlag = None,
    seeds: SeedsFlag = "0:4",
    output: Output = Path("compare.png"),
    model: ModelFlag = "mini",
    steps: StepsFlag = None,
    guidance: GuidanceFlag = None,
    solver: SolverFlag = None,
    batch: BatchFlag = 32,
    device: DeviceFlag = "cpu",
    dtype: DtypeFlag = "fp32",
    tokenizer: TokenizerFlag = None,
    any_base: AnyBaseFlag = False,
) -> None:
    """Draw prompts by the original model and under each edit, the same seeds: rows = prompts, columns = edits."""
    given, numbers, edits = _checked(prompts, model, edit, seeds, output, (steps, guidance, solver, batch), dtype)
    if not edits:
        raise BadInput("nothing to compare with: give at least one --edit")
    loads = [None, *(parse.load(terms) for terms in edits)]
    loaded = load_model(model, device, dtype, tokenizer)
    columns = [draw(loaded, change, prompts, numbers, given, batch, any_base) for change in loads]
    from efface.report import grid

    split = [column.unflatten(0, (len(prompts), len(numbers))) for column in columns]
    cells = [[column[i] for column in split] for i in range(len(prompts))]
    names = ["original", *(label(text) for text in edit or ())]
    grid.save(grid.sheet(cells, rows=prompts, columns=names), output)
    say(
        f"compared {len(edits)} edit{'s' * (len(edits) > 1)} on {len(prompts)} prompts × {len(numbers)} seeds",
        output,
    )


def draw(
    model: "Model",
    edit: "Edit | None",
    prompts: list[str],
    seeds: tuple[int, ...],
    given: dict[str, Any],
    batch: int,
    any_base: bool = False,
) -> "Tensor":
    """Return (prompts × seeds, 3, h, w) images in [0, 1], from the store where it has them."""
    from efface.evaluate import images

    return images(model, edit, queries(prompts, seeds, given), batch=batch, any_base=any_base)


def label(text: str) -> str:
    """Name a column: a lone file by its stem, an expression without the suffixes."""
    path = Path(text)
    return path.stem if path.is_file() else text.replace(".safetensors", "")


def _checked(
    prompts: list[str],
    model: str,
    edit: list[str] | None,
    seeds: str,
    output: Path,
    numbers: tuple[int | None, float | None, str | None, int],
    dtype: str,
) -> tuple[dict[str, Any], tuple[int, ...], list[list[parse.Term]]]:
    check.prompts(prompts)
    check.model(model)
    check.output(output, ".png")
    given = sampling(*numbers)
    check_dtype(dtype)
    found = parse.seeds(seeds)
    edits = [parse.terms(text) for text in edit or ()]
    parse.check_files(edits)
    if len(prompts) * len(found) * (len(edits) + 1) > MAX_IMAGES:
        raise BadInput(f"more than {MAX_IMAGES} images for one sheet; give fewer prompts or seeds")
    return given, found, edits
