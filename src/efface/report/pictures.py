"""The pictures of a report: which prompts of a record to show, and their images from the store."""

from collections.abc import Sequence
from typing import NamedTuple

from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Record, Row
from efface.evaluation.store import Store
from efface.report import grid
from efface.report.page import Line, Picture

SEEDS = 3  # images of each cell, where there are so many
PROMPTS = {"low": 1, "high": 3}  # prompts of each group, by which of its scores is good


class Asked(NamedTuple):
    """One prompt to show: the title of its group, its text, and the name that its images should show."""

    group: str
    prompt: str
    label: str


def choose(record: Record) -> list[Asked]:
    """Return one prompt of each group that should go and three of each that should stay, from all over the group.

    Only groups without parts, and of objects where there are any: the judge names one kind at a time.
    """
    found: list[Asked] = []
    for group in GROUPS:
        rows = [row for row in record.rows if row.groups[0] == group.name and row.made_by == "original"]
        objects = [row for row in rows if row.judged == "object"] or rows
        prompts = {row.query.prompt: Asked(group.title, row.query.prompt, row.label) for row in objects}
        found += _spread(list(prompts.values()), PROMPTS[group.better])
    return found


def lines(records: Sequence[Record], store: Store) -> list[Line]:
    """Return the chosen prompts with the images of every model; one that left the store is left out."""
    return [
        Line(one.prompt, one.group, [_cell(records[0], "original", one, store)]
             + [_cell(record, "edited", one, store) for record in records])
        for one in (choose(records[0]) if records else ())
    ]  # fmt: skip


def _cell(record: Record, maker: str, one: Asked, store: Store) -> list[Picture]:
    rows = [r for r in record.rows if (r.made_by, r.query.prompt, r.label) == (maker, one.prompt, one.label)]
    found = [_picture(row, store) for row in rows[:SEEDS]]
    return [picture for picture in found if picture is not None]


def _picture(row: Row, store: Store) -> Picture | None:
    image = store.image(row.image)
    return None if image is None else Picture(grid.data_uri(grid.to_image(image)), row.seen, row.top1)


def _spread(prompts: list[Asked], count: int) -> list[Asked]:
    """Return some prompts from all over a list."""
    return prompts[len(prompts) // (2 * count) :: max(1, len(prompts) // count)][:count] if prompts else []
