"""One self-contained page: styles inline, images as data URIs, nothing fetched, nothing run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.report import grid, tables
from efface.report.verdict import verdicts
from efface.util.files import writing


@dataclass(frozen=True)
class Shot:
    """One image of a cell: a data URI, what the judge saw in it, and whether that is what was asked for."""

    uri: str
    seen: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Row:
    """One prompt of the grid: its group ("erased", "related", …) and one list of shots per column."""

    prompt: str
    group: str
    cells: Sequence[Sequence[Shot]]


@dataclass(frozen=True)
class Column:
    """One edit: how it is called, how long it took, its provenance, the JSON of its evaluation."""

    name: str
    summary: str
    seconds: float
    meta: Mapping[str, Any]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Everything a report shows.

    facts: short "name: value" pairs under the title. times: (what, seconds). commands: how to get the same numbers.
    """

    title: str
    lead: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    facts: Mapping[str, str] = field(default_factory=dict)
    times: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()


def shots(images: Any, seen: Sequence[str] = (), wanted: str = "") -> list[Shot]:
    """Make shots of images (n, 3, h, w) in [0, 1]; seen: the judge's word for each, wanted: the word asked for."""
    words = list(seen) or [""] * len(images)
    rights = [word == wanted if wanted and word else None for word in words]
    return [Shot(grid.data_uri(grid.to_image(i)), w, r) for i, w, r in zip(images, words, rights, strict=True)]


def render(page: Page) -> str:
    """Return the page as HTML. Raises BadInput when its results cannot share a table."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("efface.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    results = [column.result for column in page.columns]
    tables.check_comparable(results)
    return environment.get_template("template.html.j2").render(
        page=page,
        nbsp="\N{NO-BREAK SPACE}",
        names=["original", *(column.name for column in page.columns)],
        verdicts=[verdicts(result) for result in results],
        groups=[_group(name, results) for name in tables.present(results)],
        singles=tables.per_concept(results, [column.name for column in page.columns]),
        profile=_pretty(results[0]["profile"]),
        provenance=[_pretty(_short(column.meta)) for column in page.columns],
    )


def save(page: Page, path: Path) -> None:
    """Render and write the page, whole or not at all. Raises WriteError."""
    text = render(page)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _group(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Gather one line of the judged table: before once, after per edit, each with the geometry of its bar."""
    groups = [result["groups"].get(name) for result in results]
    before = next(group["before"] for group in groups if group is not None)
    sides = [None if group is None else group["after"] for group in groups]
    return {
        "title": tables.TITLES.get(name, name),
        "want": "low" if name in ("target", "styled", "implicit", "implicit_held_out") else "high",
        "n": before["n"],
        "cells": [_bar(side, None if i == 0 else before["top1"]) for i, side in enumerate([before, *sides])],
    }


def _bar(side: Mapping[str, Any] | None, mark: float | None) -> dict[str, Any] | None:
    if side is None:
        return None
    low, high = side["ci95"]
    return {
        "value": tables.percent(side["top1"]),
        "top5": tables.percent(side["top5"]),
        "n": side["n"],
        "range": f"{100 * low:.0f}–{100 * high:.0f}",
        "x": round(100 * side["top1"], 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
        "mark": None if mark is None else round(100 * mark, 2),
    }


def _short(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the hash of every single weight: the fingerprint stands for them."""
    base = {key: value for key, value in dict(meta.get("base", {})).items() if key not in ("hashes", "cross_attention")}
    names = {key: [item["name"] for item in meta.get(key, ())] for key in ("erase", "keep")}
    return {**meta, **names, **({"base": base} if base else {})}


def _pretty(value: Mapping[str, Any]) -> str:
    """Write JSON with one line per entry, short lists on one line."""
    lines = [f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
    return "{\n  " + ",\n  ".join(lines) + "\n}"
