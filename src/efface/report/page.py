"""One self-contained page: inline styles, images as data URIs, no requests.

A page is made of sections, one file each in `report/sections/`, found by name and put in the order of their ORDER.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from markupsafe import Markup

from efface.evaluation.asr import ASR
from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.compare import check_comparable
from efface.evaluation.record import Scored
from efface.report import html
from efface.util.files import writing

SECTIONS = Path(__file__).parent / "sections"
FEW = 4  # edits that fit side by side


@dataclass(frozen=True)
class CellImage:
    """One image of a cell: a data URI, the judge's first name, and whether it is the right one."""

    uri: str
    seen: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Line:
    """One prompt: the title of its group and one list of images per column."""

    prompt: str
    group: str
    cells: Sequence[Sequence[CellImage]]


@dataclass(frozen=True)
class Strip:
    """The same seeds before the edit, after it, and under an attack."""

    attack: str
    rates: ASR
    record: AttackRecord
    original: Sequence[CellImage] = ()
    edited: Sequence[CellImage] = ()
    attacked: Sequence[CellImage] = ()


@dataclass(frozen=True)
class Column:
    """One edit: a title, a sentence about it, the record of its evaluation, and the attacks on it."""

    name: str
    summary: str
    record: Scored
    attacks: Sequence[Strip] = ()


@dataclass(frozen=True)
class Page:
    """Everything a report shows.

    facts: short "name: value" pairs under the title. times: (what, seconds). commands: that reproduce the numbers.
    blurred: whether images are blurred until they are clicked.
    """

    title: str
    lead: str
    columns: Sequence[Column]
    lines: Sequence[Line] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    times: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()
    blurred: bool = False

    @property
    def records(self) -> list[Scored]:
        """Return the records of the columns."""
        return [column.record for column in self.columns]

    @property
    def many(self) -> bool:
        """Return whether there are more edits than fit side by side, so that each has a row instead of a column."""
        return len(self.columns) > FEW


def sections() -> list[Any]:
    """Return the modules of `report/sections/` in the order of the page.

    Each has ORDER, a number, and `render(page)`, which returns its HTML, "" to be left out.
    """
    names = (path.stem for path in SECTIONS.glob("*.py") if not path.stem.startswith("_"))
    found = [import_module(f"efface.report.sections.{name}") for name in names]
    return sorted(found, key=lambda module: (module.ORDER, module.__name__))


def render(page: Page) -> str:
    """Return the page as HTML. Raises BadInput when its records cannot share a table."""
    check_comparable(page.records)
    body = [Markup(section.render(page)) for section in sections()]
    return html.page(page=page, sections=body, wide=len(page.columns) > 3, sortable=False)


def save(page: Page, path: Path) -> None:
    """Render and write the page, whole or not at all. Raises WriteError."""
    text = render(page)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
