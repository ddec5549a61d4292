"""`efface combine` and `efface export`: compute with edits; write an edit into a copy of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check, parse
from efface.cli.options import AnyBaseFlag, say
from efface.errors import BadInput, WriteError

Expression = Annotated[
    str,
    typer.Argument(metavar="EXPRESSION", help='A sum of edits: "0.5*a.safetensors + b.safetensors - c.safetensors".'),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The edit to write, .safetensors.")]


def combine(expression: Expression, output: Output) -> None:
    """Add, subtract and scale edits of one base model; write the result as an edit."""
    check.output(output, ".safetensors")
    terms = parse.terms(expression)
    parse.check_files([terms])
    edit = parse.load(terms)
    edit.save(output)
    say(f"combined {len(terms)} edit{'s' if len(terms) > 1 else ''}: {expression}", output)


Base = Annotated[
    str, typer.Option("--model", "-m", help="The checkpoint to copy: a diffusers folder or a .safetensors file.")
]
Copy = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The edited copy: a file for a file, a folder else.")
]


def export(expression: Expression, output: Copy, model: Base, any_base: AnyBaseFlag = False) -> None:
    """Write an edit into a copy of a checkpoint; what it does not change is copied as it is, in little memory."""
    where = Path(check.model(model))
    if not where.exists():
        raise BadInput(f"--model {model}: name a folder or a file to copy")
    if where.is_file():
        check.output(output, ".safetensors")
    elif output.exists():
        raise WriteError(f"-o {output} is there already; name a new folder")
    else:
        check.folder(output.parent)
    terms = parse.terms(expression)
    parse.check_files([terms])
    from efface.models.files import stream

    stream.write(parse.load(terms), where, output, any_base)
    say(f"wrote {expression} into a copy of {model}", output)
