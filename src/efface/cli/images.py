"""`efface generate` and `efface compare`: labelled sheets of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli import check, parse
from efface.cli.keys import KeyFlag, owned
from efface.cli.options import Common, EditFlag, ModelFlag, SeedsFlag, queries, say, with_common
from efface.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from efface.edits.edit import Edit
    from efface.models.model import Model

Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT…", help="What to draw; one row each.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The picture to write, .png.")]

MAX_IMAGES = 4096  # a sheet of more is no picture any more


@with_common()
def generate(
    prompts: Prompts,
    common: Common,
    edit: EditFlag = None,
    key: KeyFlag = None,
    seeds: SeedsFlag = "0",
    output: Output = Path("sheet.png"),
    model: ModelFlag = "mini",
) -> None:
    """Draw prompts, one image per seed, with all the given edits applied together.

    One prompt and one seed give the bare image, anything more a labelled sheet.
    """
    given, numbers, edits = _checked(prompts, model, edit, seeds, output, common)
    every = [term for terms in edits for term in terms]
    owned(key, [every] if every else [])
    total = parse.load(every) if every else None
    images = draw(common.load(model), total, prompts, numbers, given, common, key)
    from efface.report import grid

    if len(prompts) == len(numbers) == 1:
        grid.save(grid.to_image(images[0]), output)
    else:
        rows = images.unflatten(0, (len(prompts), len(numbers)))
        cells = [[cell[None] for cell in row] for row in rows]
        grid.save(grid.sheet(cells, rows=prompts, columns=[f"seed {n}" for n in numbers]), output)
    say(f"drew {len(images)} image{'s' * (len(images) > 1)} with {model}", output)


@with_common()
def compare(
    prompts: Prompts,
    common: Common,
    edit: EditFlag = None,
    key: KeyFlag = None,
    seeds: SeedsFlag = "0:4",
    output: Output = Path("compare.png"),
    model: ModelFlag = "mini",
) -> None:
    """Draw prompts by the original model and under each edit, the same seeds: rows = prompts, columns = edits.

    With a key, the edit that it opens has a second column.
    """
    given, numbers, edits = _checked(prompts, model, edit, seeds, output, common)
    if not edits:
        raise BadInput("nothing to compare with: give at least one --edit")
    opened = owned(key, edits)
    loads = [parse.load(terms) for terms in edits]
    loaded = common.load(model)
    columns = [("original", draw(loaded, None, prompts, numbers, given, common))]
    for text, change, opens in zip(edit or (), loads, opened, strict=True):
        columns.append((label(text), draw(loaded, change, prompts, numbers, given, common)))
        if opens:
            columns.append((f"{label(text)} + key", draw(loaded, change, prompts, numbers, given, common, key)))
    from efface.report import grid

    split = [column.unflatten(0, (len(prompts), len(numbers))) for _, column in columns]
    cells = [[column[i] for column in split] for i in range(len(prompts))]
    grid.save(grid.sheet(cells, rows=prompts, columns=[name for name, _ in columns]), output)
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
    common: Common,
    key: Path | None = None,
) -> "Tensor":
    """Return (prompts × seeds, 3, h, w) images in [0, 1], from the store where it has them.

    key: the file of a key to the edit, with which the model draws the concept again.
    """
    from efface.evaluation.evaluate import images
    from efface.evaluation.store import Store

    asked = queries(prompts, seeds, given)
    if key is None or edit is None:
        return images(model, edit, asked, batch=common.batch, any_base=common.any_base)
    from efface.edits.edit import Edit
    from efface.models.learned_prompt import unlocked

    with edit.applied(model, common.any_base) as sanitized:
        return Store.default().images(unlocked(sanitized, Edit.load(key)), edit.id, asked, common.batch)


def label(text: str) -> str:
    """Name a column: a lone file by its stem, an expression without the suffixes."""
    path = Path(text)
    return path.stem if path.is_file() else text.replace(".safetensors", "")


def _checked(
    prompts: list[str], model: str, edit: list[str] | None, seeds: str, output: Path, common: Common
) -> tuple[dict[str, Any], tuple[int, ...], list[list[parse.Term]]]:
    check.prompts(prompts)
    check.model(model)
    check.output(output, ".png")
    given = common.check()
    found = parse.seeds(seeds)
    edits = [parse.terms(text) for text in edit or ()]
    parse.check_files(edits)
    if len(prompts) * len(found) * (len(edits) + 1) > MAX_IMAGES:
        raise BadInput(f"more than {MAX_IMAGES} images for one sheet; give fewer prompts or seeds")
    return given, found, edits
