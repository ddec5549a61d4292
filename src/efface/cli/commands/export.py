"""`efface export`: write an edit into a copy of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check, parse
from efface.cli.options import AnyBaseFlag, Expression, say
from efface.errors import BadInput, WriteError

ORDER = 70
Base = Annotated[
    str, typer.Option("--model", "-m", help="The checkpoint to copy: a diffusers folder or a .safetensors file.")
]
Copy = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="The edited copy: a file if the model is a file, else a folder."
    ),
]


def run(expression: Expression, output: Copy, model: Base, any_base: AnyBaseFlag = False) -> None:
    """Write an edit into a copy of a checkpoint; uses little memory."""
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
