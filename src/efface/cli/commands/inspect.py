"""`efface inspect`: say what a file or folder is, and whether it fits a model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli import check

if TYPE_CHECKING:
    from efface.inspection.summary import Summary

ORDER = 75
What = Annotated[Path, typer.Argument(metavar="FILE", help="A file or folder: an edit, LoRA, checkpoint, record, …")]
Fitted = Annotated[str, typer.Option("--model", "-m", help="Also say whether it fits this model.", show_default="none")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def run(path: What, model: Fitted = "", as_json: AsJson = False) -> None:
    """Say what a file is: what it changes, what it was made for, which tools read it, which model it fits."""
    if model:
        check.model(model)
    from efface.inspection.inspect import inspect

    found = inspect(path, model)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        _print(found)


def _print(found: "Summary") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110, highlight=False, markup=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(found):
        facts.add_row(name, value)
    console.print(facts)
    if found.changes:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("block", "weights", "how", "values stored", "which"):
            table.add_column(column, justify="right" if column in ("weights", "values stored") else "left")
        for group in found.changes:
            count = f"{group.values:,}" if group.values else ""
            table.add_row(group.block, str(group.weights), group.how, count, ", ".join(group.kinds))
        console.print(table)
    for note in found.notes:
        console.print(f"- {note}")


def _facts(found: "Summary") -> list[tuple[str, str]]:
    """Return the facts that are known, as (name, value)."""
    fits = {None: "", True: "yes", False: "no"}[found.fits]
    rows = [("what", found.kind), ("size", _size(found.size)), ("family", found.family or "not told by its names")]
    rows += [("keys", found.layout), ("read by", ", ".join(found.readers)), ("fits the model", fits)]
    rows += [(name, _words(value)) for name, value in found.made.items()]
    if found.share is not None:
        rows.append(("text weights changed", f"{found.share:.0%}"))
    return [(name, value) for name, value in rows if value]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
