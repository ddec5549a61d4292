"""`efface report`: the page about a bench."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check
from efface.cli.options import say
from efface.errors import BadInput

ORDER = 46
FORMATS = (".html", ".md", ".csv", ".tex")
RunArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that efface bench wrote.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="The page, .html; or its table alone, .md, .csv or .tex.",
        show_default="index.html in FOLDER",
    ),
]  # fmt: skip


def run(folder: RunArgument, output: Output = None) -> None:
    """Write one self-contained page about a bench: all edits, every concept, pictures, attacks, provenance."""
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: efface bench writes one")
    out = output or folder / "index.html"
    if out.suffix.lower() not in FORMATS:
        raise BadInput(f"-o {out}: give the file a name that ends in {', '.join(FORMATS)}")
    check.output(out, out.suffix.lower())
    from efface.evaluation.bench.folder import Folder
    from efface.report import bench

    if out.suffix.lower() == ".html":
        say("", bench.report(Folder(folder), out))
        return
    say("", bench.table_file(Folder(folder), out))
