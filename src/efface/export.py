"""Export: write an edit in a format that other tools read. Each file in `exports/` registers one by its name."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from efface import registry
from efface.edits.edit import Edit
from efface.edits.guard import Guard, MapGuard
from efface.errors import BadEdit, BadInput, WriteError
from efface.exporting.base import Base, Values, open_base
from efface.exporting.report import Compare, Report, Verified, Written
from efface.exporting.tools import TOOLS
from efface.util import temporary
from efface.util.ranges import Ranges, short


@dataclass(frozen=True)
class Export(ABC):
    """Base class of formats; a call writes an edit, reads it again and compares before the file gets its name.

    FOLDER: whether a folder is written, and not a .safetensors file. READERS: the tools it is made for.
    RANGES: the range of every number among its fields, as in `Method`.
    """

    KIND: ClassVar[str] = "exports"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    FOLDER: ClassVar[bool] = False
    READERS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check the fields; a subclass that checks more calls this first. Raises `BadInput` or `UnknownName`."""
        registry.check_fields(self)

    @property
    def name(self) -> str:
        """Return the format's name as the command line has it."""
        return spoken(registry.name_of(type(self)))

    def __call__(self, edit: Edit, base: Base, out: Path, any_base: bool = False, compare: Compare = "auto") -> Report:
        """Write an edit and return how well the file holds it.

        Raises `BadEdit` for an edit that the format cannot express, and when what was written does something else;
        `WriteError`. Nothing is left behind then.
        """
        self.check(edit, base)
        values = base.of(edit, any_base)
        with _written(out, self.FOLDER) as own:
            done = self.write(edit, base, values, own)
            found = self.verify(edit, base, values, own, done, compare)
            size = sum(file.stat().st_size for file in ([own] if own.is_file() else own.rglob("*")) if file.is_file())
        tools = self.readers(edit, base)
        return Report(self.name, out, size, found.weights, found.error, done.rank, done.dtype, tools, found.checks)

    def check(self, edit: Edit, base: Base) -> None:
        """Raise `BadEdit` or `BadInput` for what the format cannot express, with what can; before long work.

        A subclass that refuses more calls this first, which refuses edits that no file of weights can hold.
        """
        refuse(edit)

    def readers(self, edit: Edit, base: Base) -> tuple[str, ...]:
        """Return the names of the tools that read the file of an edit of this model."""
        return tuple(TOOLS[tool].title for tool in self.READERS)

    @abstractmethod
    def write(self, edit: Edit, base: Base, values: Values, out: Path) -> Written:
        """Write the edit to a file or folder that does not exist yet; values: of the weights that it changes."""

    @abstractmethod
    def verify(self, edit: Edit, base: Base, values: Values, out: Path, written: Written, compare: Compare) -> Verified:
        """Read what was written and compare it with the edit; raises `BadEdit` when it is something else."""


def spoken(name: str) -> str:
    """Return a format's name as the command line has it: diffusers-lora for diffusers_lora."""
    return name.replace("_", "-")


def names() -> list[str]:
    """Return the names of all formats."""
    return [spoken(name) for name in registry.names("exports")]


def export_edit(
    edit: Edit,
    to: str,
    out: str | os.PathLike[str],
    model: Any,
    any_base: bool = False,
    compare: Compare = "auto",
    **fields: Any,
) -> Report:
    """Export an edit to one of the formats, read what was written, and return a report.

    to: "diffusers-lora", "kohya-lora", "diff", "single-file" or "diffusers-folder". model: what the edit was made on:
    a name or path, a `Model`, or a diffusers pipeline. compare: "weights" compares the weights in the file with the
    edit's; "outputs" also those of the denoiser, as diffusers loads it; "auto" does so where the denoiser is small
    enough and the format is one that diffusers loads. fields: the format's own, such as rank=8.
    Raises `UnknownName`, `BadInput`, `BadEdit`, `BadModel`, `WriteError`.

    >>> export_edit(efface.Edit.load("church.safetensors"), "kohya-lora", "church_lora.safetensors", "sd14.safetensors")
    """
    if not isinstance(edit, Edit):
        raise BadInput(f"an edit is an Edit, got {short(edit)}")
    cls = registry.get("exports", str(to).replace("-", "_"))
    if compare not in ("auto", "outputs", "weights"):
        raise BadInput(f"compare is auto, outputs or weights, got {compare!r}")
    return registry.build(cls, **fields)(edit, open_base(model), Path(out), any_base, compare)


def refuse(edit: Edit) -> None:
    """Raise `BadEdit` for an edit that no file of weights can hold."""
    if any(isinstance(guard, MapGuard) for guard in edit.guards):
        raise BadEdit(
            "this edit maps the text while images are generated, which no file of weights can hold: export the edit "
            "it was made from (before `as_guard`), which changes weights to the same effect"
        )
    if edit.guards:
        names = ", ".join(registry.name_of(type(guard.method)) for guard in edit.guards if isinstance(guard, Guard))
        raise BadEdit(
            f"this edit has a guard ({names}), which acts while images are generated: no file of weights can hold it; "
            "use it with efface, or attach it to a diffusers pipeline (`efface.attach`)"
        )
    if not edit.names:
        what = "a key, which holds prompts" if "key" in edit.meta else "empty"
        raise BadEdit(f"this edit changes no weight (it is {what}): there is nothing to export")


def header_of(edit: Edit, base: Base, name: str) -> dict[str, str]:
    """Return the metadata of an exported file: what the edit is and was made for, as one JSON text."""
    known = ("method", "preset", "fields", "erase", "preserve", "op", "scale", "seed", "created", "versions")
    about = {key: edit.meta[key] for key in known if key in edit.meta}
    model = {key: edit.meta.get("base", {}).get(key, "") for key in ("name", "id")}
    return {
        "format": "pt",
        "efface_export": json.dumps(
            {"format": name, "id": edit.id, "architecture": base.architecture, **about, "base": model}
        ),
    }


@contextmanager
def _written(out: Path, folder: bool) -> Iterator[Path]:
    """Yield a place beside `out`; what is there gets its name when the block ends well, and is removed otherwise."""
    if folder and out.exists():
        raise WriteError(f"cannot write {out}: it exists already")
    if not folder and out.is_dir():
        raise WriteError(f"cannot write {out}: it is a folder")
    try:
        with temporary.beside(out) as place:
            own = place / out.name
            yield own
            os.replace(own, out)
    except OSError as error:
        raise WriteError(f"cannot write {out}: {error.strerror or error}") from error


__all__ = ["Export", "Report", "export_edit", "names"]
