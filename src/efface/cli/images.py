"""Shared by commands that generate images: arguments, checks, and the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli import check, parse
from efface.cli.options import Common, queries
from efface.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from efface.edits.edit import Edit
    from efface.finding import Finding
    from efface.models.model import Model

PromptsArgument = Annotated[list[str], typer.Argument(metavar="PROMPT…", help="Prompts of the images; one row each.")]
SheetFlag = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The image file to write, .png.")]

MAX_IMAGES = 4096  # most images of one sheet


def generate(
    model: "Model",
    edit: "Edit | None",
    prompts: list[str],
    seeds: tuple[int, ...],
    given: dict[str, Any],
    common: Common,
    key: Path | None = None,
    opened: str = "",
) -> "Tensor":
    """Return (prompts × seeds, 3, h, w) images in [0, 1], from the store if it has them.

    key: the file of a key to the edit, with which the model generates the concept again.
    opened: the concept, for a key with a prompt for each.
    """
    from efface.evaluation.evaluate import images
    from efface.evaluation.store import Store

    asked = queries(prompts, seeds, {"guidance": model.family.GUIDANCE} | given)
    if key is None or edit is None:
        return images(model, edit, asked, batch=common.batch, any_base=common.any_base)
    from efface.edits.edit import Edit
    from efface.models.learned_prompt import unlocked

    with edit.applied(model, common.any_base) as sanitized:
        return Store.default().images(unlocked(sanitized, Edit.load(key), opened), edit.id, asked, common.batch)


def findings(paths: Sequence[Path], edits: Sequence[str]) -> "dict[str, list[tuple[str, Finding]]]":
    """Read findings of `efface attack`, by the id of the edit they attacked, each with its attack's name.

    edits: ids of those that are shown. Raises BadFile for a file that is none, BadInput for one of another edit.
    """
    if not paths:
        return {}
    from efface.finding import Finding

    read: dict[str, list[tuple[str, Finding]]] = {}
    for path in paths:
        found = Finding.load(path)
        edit = str(found.meta.get("edited", {}).get("edit", ""))
        if edit not in edits:
            raise BadInput(f"--finding {path} attacked the edit {edit[:12] or 'of none'}, which is not among --edit")
        read.setdefault(edit, []).append((str(found.meta.get("attack", path.stem)), found))
    return read


def label(text: str) -> str:
    """Return a column's label: the stem of a single file, an expression without suffixes."""
    path = Path(text)
    return path.stem if path.is_file() else text.replace(".safetensors", "")


def checked(
    prompts: list[str], model: str, edit: list[str] | None, seeds: str, output: Path, common: Common
) -> tuple[dict[str, Any], tuple[int, ...], list[list[parse.Term]]]:
    """Check all that can be checked before a model is loaded; return sampling fields, seeds and edits."""
    check.prompts(prompts)
    check.model(model)
    check.output(output, ".png")
    given = check.sampling(model) | common.check()
    found = parse.seeds(seeds)
    edits = [parse.terms(text) for text in edit or ()]
    parse.check_files(edits)
    if len(prompts) * len(found) * (len(edits) + 1) > MAX_IMAGES:
        raise BadInput(f"more than {MAX_IMAGES} images for one sheet; give fewer prompts or seeds")
    return given, found, edits
