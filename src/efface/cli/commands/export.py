"""`efface export`: write an edit in a format that other tools read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import registry
from efface.cli import check, parse
from efface.cli.options import DTYPES, AnyBaseFlag, Expression, say
from efface.errors import BadInput, WriteError, unknown

if TYPE_CHECKING:
    from efface.exporting.report import Report

ORDER = 70
COMPARE = ("auto", "weights", "outputs")
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="diffusers-lora, kohya-lora (ComfyUI, A1111), diff, single-file, diffusers-folder, …",
        show_default="diffusers-folder, if -o names a folder",
    ),
]
Base = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="What the edit was made on: a diffusers folder, a .safetensors file, a hub id.",
        show_default="the one the edit names",
    ),
]
Out = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write, or the new folder."),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", help="Of a LoRA: directions kept of each difference; text maps are exact without."),
]
Error = Annotated[
    float | None, typer.Option("--error", help="Instead of a rank: share of their norm that may be left out, 0 to 1.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Precision of the file: fp32, bf16 or fp16.", show_default="fp16")
]
Check = Annotated[
    str,
    typer.Option(
        "--check", help="weights; outputs also loads the denoiser with diffusers; auto does if it is not too large."
    ),
]


def run(
    expression: Expression,
    output: Out,
    to: To = "",
    model: Base = "",
    rank: Rank = None,
    error: Error = None,
    dtype: Dtype = None,
    check_by: Check = "auto",
    any_base: AnyBaseFlag = False,
) -> None:
    """Write an edit as a LoRA, as full differences, or into a copy of a checkpoint; then read it again and compare."""
    chosen = _format(to, output)
    fields = _fields(chosen, rank, error, dtype)
    if check_by not in COMPARE:
        raise unknown("value of --check", check_by, COMPARE)
    if model:
        check.model(model)
    where = _place(chosen, model, output)
    terms = parse.terms(expression)
    parse.check_files([terms])
    edit = parse.load(terms)
    named = str(dict(edit.meta.get("base", {})).get("name") or "")
    if not where and not named:
        raise BadInput("this edit does not name the model it was made on: give it as --model")
    from efface.export import export_edit

    where = where or check.model(named)
    report = export_edit(edit, chosen, output, where, any_base, check_by, **fields)  # type: ignore[arg-type]
    say("\n".join(_lines(expression, report)), output)


def _format(to: str, output: Path) -> str:
    """Return the file name of a format. Raises `UnknownName`, and `BadInput` where several would do."""
    known = {name.replace("_", "-"): name for name in registry.names("exports")}
    if to:
        if to.replace("_", "-") not in known:
            raise unknown("format", to, known)
        return known[to.replace("_", "-")]
    if not output.suffix:
        return known["diffusers-folder"]
    files = ", ".join(name for name in known if name != "diffusers-folder")
    raise BadInput(f"-o {output} can be of several formats: say which with --to ({files})")


def _fields(chosen: str, rank: int | None, error: float | None, dtype: str | None) -> dict[str, Any]:
    """Return the fields of a format that were given. Raises `BadInput` for one that it does not have."""
    from efface.cli.fields import sheet

    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    given = {name: value for name, value in (("rank", rank), ("error", error), ("dtype", dtype)) if value is not None}
    if rank is not None and error is not None:
        raise BadInput(f"give --rank {rank} or --error {error:g}, not both")
    known = {field.name: field for field in sheet("exports", chosen).fields}
    for name, value in given.items():
        if name not in known:
            raise BadInput(f"--to {chosen.replace('_', '-')} has no --{name}")
        registry.check_field(known[name], value, f"--{name}")
    return given


def _place(chosen: str, model: str, output: Path) -> str:
    """Return the model that is given, after checks of the output. Raises `BadInput` or `WriteError`."""
    if chosen != "diffusers_folder":
        check.output(output, ".safetensors")
    elif output.exists():
        raise WriteError(f"-o {output} is there already; name a new folder")
    else:
        check.folder(output.parent)
    if chosen in ("single_file", "diffusers_folder") and model and not Path(model).exists():
        raise BadInput(f"--model {model}: name a folder or a file to copy")
    if chosen == "diffusers_folder" and model and Path(model).is_file():
        raise BadInput(f"--model {model} is a file: --to single-file copies it, diffusers-folder copies a folder")
    if chosen == "single_file" and model and Path(model).is_dir():
        raise BadInput(f"--model {model} is a folder: --to diffusers-folder copies it, single-file copies a file")
    return model


def _lines(expression: str, report: "Report") -> list[str]:
    """Return what was written, how near it is, and how that was checked."""
    about = f"{len(report.weights)} weights"
    about += "".join(f", {word}" for word in (f"rank {report.rank}" if report.rank else "", report.dtype) if word)
    worst = max(report.weights, key=lambda name: report.weights[name])
    return [
        f"wrote {expression} as {report.format}: {about}, {_size(report.size)}; for {', '.join(report.tools)}",
        f"error of the differences: {report.error:.1e} in all, at most {report.weights[worst]:.1e} ({worst})",
        *(f"checked: {check}" for check in report.checks),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
