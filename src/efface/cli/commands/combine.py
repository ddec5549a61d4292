"""`efface combine`: add, subtract and scale edits."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check, parse
from efface.cli.options import Expression, say

ORDER = 60
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The edit to write, .safetensors.")]


def run(expression: Expression, output: Output) -> None:
    """Add, subtract and scale edits of one base model; write the result as an edit."""
    check.output(output, ".safetensors")
    terms = parse.terms(expression)
    parse.check_files([terms])
    edit = parse.load(terms)
    edit.save(output)
    say(f"combined {len(terms)} edit{'s' if len(terms) > 1 else ''}: {expression}", output)
