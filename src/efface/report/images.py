"""Images of a report: the prompts of a record to show, and their images from the store."""

from collections.abc import Sequence
from typing import NamedTuple

from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Record, Row
from efface.evaluation.store import Store
from efface.report import grid
from efface.report.page import CellImage, Line

SEEDS = 3  # most images per cell
PROMPTS = {"low": 1, "high": 3}  # prompts of each group, by its better direction


class Asked(NamedTuple):
    """One prompt to show: the title of its group, its text, and the name that its images should show."""

    group: str
    prompt: str
    label: str


def choose(record: Record) -> list[Asked]:
    """Return one prompt of each group where low is good, three of each where high is, spread over the group.

    Groups that are parts of others are left out; of objects and styles, objects are preferred.
    """
    found: list[Asked] = []
    for group in GROUPS:
        rows = [row for row in record.rows if row.groups[0] == group.name and row.made_by == "original"]
        objects = [row for row in rows if row.judged == "object"] or rows
        prompts = {row.query.prompt: Asked(group.title, row.query.prompt, row.label) for row in objects}
        found += _spread(list(prompts.values()), PROMPTS[group.better])
    return found


def lines(records: Sequence[Record], store: Store) -> list[Line]:
    """Return the chosen prompts with the images of every model; images that are no longer in the store are left out."""
    return [
        Line(one.prompt, one.group, [_cell(records[0], "original", one, store)]
             + [_cell(record, "edited", one, store) for record in records])
        for one in (choose(records[0]) if records else ())
    ]  # fmt: skip


def _cell(record: Record, maker: str, one: Asked, store: Store) -> list[CellImage]:
    rows = [r for r in record.rows if (r.made_by, r.query.prompt, r.label) == (maker, one.prompt, one.label)]
    found = [_image(row, store) for row in rows[:SEEDS]]
    return [image for image in found if image is not None]


def _image(row: Row, store: Store) -> CellImage | None:
    image = store.image(row.image)
    return None if image is None else CellImage(grid.data_uri(grid.to_image(image)), row.seen, row.top1)


def _spread(prompts: list[Asked], count: int) -> list[Asked]:
    """Return prompts at equal distances in a list."""
    return prompts[len(prompts) // (2 * count) :: max(1, len(prompts) // count)][:count] if prompts else []
