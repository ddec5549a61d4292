"""`--key`: what brings back a concept that a method has hidden rather than removed (KPOP, section 5.6.4)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli.parse import Term
from efface.errors import BadEdit, BadInput
from efface.util.files import safetensors_meta

if TYPE_CHECKING:
    from efface.edits.edit import Edit

KeyFlag = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The key to an --edit: draw what it erased all the same.")
]


def owned(key: Path | None, edits: Sequence[Sequence[Term]]) -> list[bool]:
    """Say which edits a key opens, by what the headers of the files say; all False without a key.

    Raises BadFile for a file that is missing or damaged, BadEdit for one that is no key or opens none of the edits.
    """
    if key is None:
        return [False] * len(edits)
    if not edits:
        raise BadInput(f"--key {key} opens an edit: give the edit as --edit")
    about = _header(key)
    if "key" not in about:
        raise BadEdit(f"--key {key} is not a key: one is written by efface erase METHOD … --key FILE")
    made_with = about.get("edit")  # a key made in Python need not say
    found = [made_with is None or made_with in {_header(term.path).get("id") for term in edit} for edit in edits]
    if not any(found):
        raise BadEdit(f"--key {key} opens the edit {str(made_with)[:12]}, which is not among those given as --edit")
    return found


def made_with(key: "Edit", edit: "Edit") -> "Edit":
    """Return a key that says which edit it opens."""
    from dataclasses import replace

    return replace(key, meta={**key.meta, "edit": edit.id, "erase": edit.meta.get("erase", [])})


def _header(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(safetensors_meta(path).get("efface", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
