"""`efface list`: methods, models, concepts and others, from file names, docstrings and tables."""

from typing import Annotated

import typer

from efface import registry
from efface.cli.check import MODELS
from efface.cli.check import model as check_model
from efface.cli.fields import sheet
from efface.cli.options import ModelFlag
from efface.concept import Concept, table, table_path
from efface.errors import BadModel, unknown

KINDS = ("methods", "attacks", "metrics", "judges", "families", "exports", "protocols", "models", "concepts")


def show(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}."),
    ],
    model: ModelFlag = "mini",
) -> None:
    """List what efface has of one kind, or a model's concepts."""
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    own = {"concepts": lambda: concepts(model), "models": models, "protocols": protocols}
    rows = own[what]() if what in own else registered(what)
    if not rows:
        typer.echo(f"no {what} yet")
        return
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip())


def registered(kind: str) -> list[tuple[str, ...]]:
    """Return (name, summary, presets) of every file of a folder."""
    if kind == "families":
        return [(name, registry.summary(kind, name)) for name in registry.names(kind)]
    if kind == "exports":
        return [(name.replace("_", "-"), registry.summary(kind, name)) for name in registry.names(kind)]
    sheets = [sheet(kind, name) for name in registry.names(kind)]
    return [(s.name, s.summary or s.source, _presets(tuple(s.presets))) for s in sheets]


def _presets(names: tuple[str, ...]) -> str:
    return f"presets: {', '.join(names)}" if names else ""


def protocols() -> list[tuple[str, ...]]:
    """Return (name, the paper's table, title, what it needs) of every protocol."""
    from efface.evaluation import protocol

    found = [protocol.describe(name) for name in protocol.names()]
    return [(one.name, one.table, one.title, _needs(one.sizes, one.data)) for one in found]


def _needs(sizes: tuple[str, ...], data: tuple[str, ...]) -> str:
    full = f"full: --data {', '.join(data)}" if data and "full" in sizes else ""
    return full or ("" if len(sizes) == 2 else f"{sizes[0]} only")


def models() -> list[tuple[str, ...]]:
    """Return what --model takes."""
    return [
        *MODELS.items(),
        ("FOLDER", "a model of a family (efface list families) saved by diffusers"),
        ("FILE.safetensors", "a checkpoint of Stable Diffusion 1.x, 2.x, SDXL or 3 in one file"),
        ("ORG/NAME", "a model of the Hugging Face hub (fetched by diffusers, then cached)"),
    ]


def concepts(model: str) -> list[tuple[str, ...]]:
    """Return (name, kind, family, related) of every concept in a model's table."""
    known = table(check_model(model))
    if not known:
        raise BadModel(f"{model} has no concept table ({table_path(model)}); any text can be erased from it")
    return [("name", "kind", "family", "related"), *(_row(concept) for concept in known.values())]


def _row(concept: Concept) -> tuple[str, ...]:
    return concept.name, concept.kind, concept.family, ", ".join(concept.related)
