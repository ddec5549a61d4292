"""`--key`: the key of an edit, with which the model generates the erased concept again (KPOP, section 5.6.4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli.parse import Term
from efface.errors import BadEdit, BadInput
from efface.util.files import safetensors_meta
from efface.util.untrusted import parse

if TYPE_CHECKING:
    from efface.edits.edit import Edit

KeyFlag = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The key of an --edit: generate the erased concept all the same."),
]
KeyConceptFlag = Annotated[
    str,
    typer.Option(
        "--key-concept",
        metavar="CONCEPT",
        help="The concept to open, for a key with a prompt for each (efface erase kpop --keys each).",
        show_default=False,
    ),
]


def owned(key: Path | None, edits: Sequence[Sequence[Term]], concept: str = "") -> list[bool]:
    """Return whether the key opens each edit, from the files' headers; all False without a key.

    concept: the one to open; "" where the key has one prompt.
    Raises BadFile for a file that is missing or damaged, BadEdit for one that is no key or not of these edits,
    BadInput or UnknownName for a concept that is missing or not among those of the key.
    """
    if key is None:
        if concept:
            raise BadInput(f"--key-concept {concept} needs the key: give it as --key")
        return [False] * len(edits)
    if not edits:
        raise BadInput(f"--key {key} opens an edit: give the edit as --edit")
    about = _header(key)
    if "key" not in about:
        raise BadEdit(f"--key {key} is not a key: one is written by efface erase METHOD … --key FILE")
    made_with = about.get("edit")  # a key saved from Python may not name its edit
    found = [made_with is None or made_with in {_header(term.path).get("id") for term in edit} for edit in edits]
    if not any(found):
        raise BadEdit(f"--key {key} opens the edit {str(made_with)[:12]}, which is not among those given as --edit")
    from efface.edits.key import chosen

    try:
        chosen(about["key"], concept)
    except (BadEdit, BadInput) as error:
        hint = " with --key-concept" if isinstance(error, BadInput) else ""
        raise type(error)(f"--key {key}: {error}{hint}") from None
    return found


def made_with(key: "Edit", edit: "Edit") -> "Edit":
    """Return the key with the id of the edit that it opens."""
    from dataclasses import replace

    return replace(key, meta={**key.meta, "edit": edit.id, "erase": edit.meta.get("erase", [])})


def _header(path: Path) -> dict[str, Any]:
    return parse(safetensors_meta(path).get("efface", "{}"), f"{path} is not a valid edit: its header", BadEdit)
