"""`efface compare`: the same prompts and seeds under several edits."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import parse
from efface.cli.images import PromptsArgument, SheetFlag, checked, findings, generate, label
from efface.cli.keys import KeyConceptFlag, KeyFlag, owned
from efface.cli.options import Common, EditFlag, ModelFlag, SeedsFlag, queries, say, with_common
from efface.errors import BadInput

ORDER = 30
FindingFlag = Annotated[
    list[Path] | None,
    typer.Option("--finding", metavar="FILE…", help="Findings of efface attack: one more column each, of its edit."),
]


@with_common()
def run(
    prompts: PromptsArgument,
    common: Common,
    edit: EditFlag = None,
    key: KeyFlag = None,
    key_concept: KeyConceptFlag = "",
    finding: FindingFlag = None,
    seeds: SeedsFlag = "0:4",
    output: SheetFlag = Path("compare.png"),
    model: ModelFlag = "mini",
) -> None:
    """Generate images with the original model and under each edit, same seeds: rows are prompts, columns are edits.

    With a key, its edit has a second column; a finding has a column behind the edit that it attacked.
    """
    given, numbers, edits = checked(prompts, model, edit, seeds, output, common)
    if not edits:
        raise BadInput("nothing to compare with: give at least one --edit")
    opened = owned(key, edits, key_concept)
    loads = [parse.load(terms) for terms in edits]
    found = findings(finding or (), [change.id for change in loads])
    from efface.evaluation.attacking import answered

    loaded = common.load(model)
    columns = [("original", generate(loaded, None, prompts, numbers, given, common))]
    for text, change, opens in zip(edit or (), loads, opened, strict=True):
        columns.append((label(text), generate(loaded, change, prompts, numbers, given, common)))
        if opens:
            keyed = generate(loaded, change, prompts, numbers, given, common, key, key_concept)
            columns.append((f"{label(text)} + key{' to ' * bool(key_concept)}{key_concept}", keyed))
        for name, one in found.get(change.id, ()):
            with change.applied(loaded, common.any_base) as edited:
                shown = answered(one, edited, queries(prompts, numbers, given), common.batch)
            columns.append((f"{label(text)} under {name}", shown))
    from efface.report import grid

    split = [column.unflatten(0, (len(prompts), len(numbers))) for _, column in columns]
    cells = [[column[i] for column in split] for i in range(len(prompts))]
    grid.save(grid.sheet(cells, rows=prompts, columns=[name for name, _ in columns]), output)
    say(
        f"compared {len(edits)} edit{'s' * (len(edits) > 1)} on {len(prompts)} prompts × {len(numbers)} seeds",
        output,
    )
