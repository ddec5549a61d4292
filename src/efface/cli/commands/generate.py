"""`efface generate`: sheets of images, with edits or without."""

from pathlib import Path

from efface.cli import parse
from efface.cli.images import PromptsArgument, SheetFlag, checked, generate
from efface.cli.keys import KeyConceptFlag, KeyFlag, owned
from efface.cli.options import Common, EditFlag, ModelFlag, SeedsFlag, say, with_common

ORDER = 20


@with_common()
def run(
    prompts: PromptsArgument,
    common: Common,
    edit: EditFlag = None,
    key: KeyFlag = None,
    key_concept: KeyConceptFlag = "",
    seeds: SeedsFlag = "0",
    output: SheetFlag = Path("sheet.png"),
    model: ModelFlag = "mini",
) -> None:
    """Generate images of prompts, one per seed, with all given edits applied together.

    One prompt and one seed give a single image, otherwise the output is a labelled sheet.
    """
    given, numbers, edits = checked(prompts, model, edit, seeds, output, common)
    every = [term for terms in edits for term in terms]
    owned(key, [every] if every else [], key_concept)
    total = parse.load(every) if every else None
    images = generate(common.load(model), total, prompts, numbers, given, common, key, key_concept)
    from efface.report import grid

    if len(prompts) == len(numbers) == 1:
        grid.save(grid.to_image(images[0]), output)
    else:
        rows = images.unflatten(0, (len(prompts), len(numbers)))
        cells = [[cell[None] for cell in row] for row in rows]
        grid.save(grid.sheet(cells, rows=prompts, columns=[f"seed {n}" for n in numbers]), output)
    say(f"generated {len(images)} image{'s' * (len(images) > 1)} with {model}", output)
