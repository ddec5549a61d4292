"""`efface compare`: the same prompts and seeds under several edits."""

from pathlib import Path

from efface.cli import parse
from efface.cli.images import PromptsArgument, SheetFlag, checked, generate, label
from efface.cli.keys import KeyConceptFlag, KeyFlag, owned
from efface.cli.options import Common, EditFlag, ModelFlag, SeedsFlag, say, with_common
from efface.errors import BadInput

ORDER = 30


@with_common()
def run(
    prompts: PromptsArgument,
    common: Common,
    edit: EditFlag = None,
    key: KeyFlag = None,
    key_concept: KeyConceptFlag = "",
    seeds: SeedsFlag = "0:4",
    output: SheetFlag = Path("compare.png"),
    model: ModelFlag = "mini",
) -> None:
    """Generate images with the original model and under each edit, same seeds: rows are prompts, columns are edits.

    With a key, its edit has a second column.
    """
    given, numbers, edits = checked(prompts, model, edit, seeds, output, common)
    if not edits:
        raise BadInput("nothing to compare with: give at least one --edit")
    opened = owned(key, edits, key_concept)
    loads = [parse.load(terms) for terms in edits]
    loaded = common.load(model)
    columns = [("original", generate(loaded, None, prompts, numbers, given, common))]
    for text, change, opens in zip(edit or (), loads, opened, strict=True):
        columns.append((label(text), generate(loaded, change, prompts, numbers, given, common)))
        if opens:
            keyed = generate(loaded, change, prompts, numbers, given, common, key, key_concept)
            columns.append((f"{label(text)} + key{' to ' * bool(key_concept)}{key_concept}", keyed))
    from efface.report import grid

    split = [column.unflatten(0, (len(prompts), len(numbers))) for _, column in columns]
    cells = [[column[i] for column in split] for i in range(len(prompts))]
    grid.save(grid.sheet(cells, rows=prompts, columns=[name for name, _ in columns]), output)
    say(
        f"compared {len(edits)} edit{'s' * (len(edits) > 1)} on {len(prompts)} prompts × {len(numbers)} seeds",
        output,
    )
