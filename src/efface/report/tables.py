"""Tables of judged accuracy: Markdown, CSV and LaTeX from the JSON of `evaluate`."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from efface.errors import BadInput

Result = Mapping[str, Any]
GROUPS = (
    "target", "styled", "content", "implicit", "implicit_held_out", "related", "unrelated", "unprotected",
    "objects", "styles",
)  # fmt: skip
TITLES = {
    "target": "erased",
    "styled": "erased, asked for in a style",
    "content": "objects drawn in the erased style",
    "implicit": "keyword prompts",
    "implicit_held_out": "keyword prompts held out of training",
    "related": "related",
    "unrelated": "unrelated",
    "unprotected": "unrelated, not in the keep list",
    "objects": "unrelated objects",
    "styles": "unrelated styles",
}
SAME = (
    "evaluator",
    "version",
    "sha256",
    "input",
    "seeds",
    "prompts",
    "steps",
    "guidance",
    "solver",
    "model_id",
)


class Table(NamedTuple):
    """A table as text cells: one header, rows below it."""

    header: list[str]
    rows: list[list[str]]


def present(results: Sequence[Result]) -> list[str]:
    """Return the groups that hold at least one image in some result, in the order of reading."""
    named = {name for result in results for name, group in result["groups"].items() if group["before"]["n"]}
    return [name for name in GROUPS if name in named] + sorted(named - set(GROUPS))


def check_comparable(results: Sequence[Result]) -> None:
    """Refuse to put scores of different judges, prompts or samplers into one table. Raises BadInput."""
    if not results:
        raise BadInput("no results to put in a table")
    for key in SAME:
        values = [result["profile"].get(key) for result in results]
        if any(value != values[0] for value in values):
            raise BadInput(f"these results cannot share a table: their {key} differs ({values[0]} and others)")


def accuracy(results: Sequence[Result], labels: Sequence[str], measure: str = "top1") -> Table:
    """Tabulate groups × (before, one column per result) as "97 % [84, 99]".

    measure: "top1" or "top5". Raises BadInput when the results' profiles differ or labels are missing.
    """
    check_comparable(results)
    if len(labels) != len(results):
        raise BadInput(f"{len(results)} results need as many labels, given {len(labels)}")
    rows = []
    for name in present(results):
        groups = [result["groups"].get(name) for result in results]
        first = next(group for group in groups if group is not None)
        cells = [_cell(group["after"], measure) if group else "" for group in groups]
        rows.append([TITLES.get(name, name), str(first["before"]["n"]), _cell(first["before"], measure), *cells])
    return Table(["prompts", "images", "before", *labels], rows)


def per_concept(results: Sequence[Result], labels: Sequence[str]) -> Table:
    """Tabulate every judged concept: its group, accuracy before, and after each edit."""
    check_comparable(results)
    rows = []
    for name, first in results[0]["per_concept"].items():
        cells = [percent(r["per_concept"][name]["after"]["top1"]) for r in results if name in r["per_concept"]]
        kept = "kept" if first.get("kept") else ""
        rows.append([name, TITLES.get(first["group"], first["group"]), kept, percent(first["before"]["top1"]), *cells])
    return Table(["concept", "group", "keep", "before", *labels], rows)


def markdown(table: Table) -> str:
    """Write a GitHub table, its columns aligned in the source too."""
    lines = [table.header, *table.rows]
    wide = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    return "\n".join(text) + "\n"


def plain(table: Table) -> str:
    """Write the table for a terminal: aligned columns, two spaces apart."""
    lines = [table.header, *table.rows]
    wide = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)).rstrip() for line in lines)


def to_csv(table: Table) -> str:
    """Write comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue()


def latex(table: Table) -> str:
    """Write a booktabs tabular."""
    columns = "l" + "r" * (len(table.header) - 1)
    body = [" & ".join(_escape(cell) for cell in line) + r" \\" for line in [table.header, *table.rows]]
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def percent(share: float) -> str:
    """Write a share as a whole percentage, but never 0 % or 100 % for what is not quite."""
    value = 100 * share
    if 0 < value < 1 or 99 < value < 100:
        return f"{value:.1f} %"
    return f"{value:.0f} %"


def _cell(side: Mapping[str, Any], measure: str) -> str:
    low, high = side["ci95" if measure == "top1" else "top5_ci95"]
    return f"{percent(side[measure])} [{100 * low:.0f}, {100 * high:.0f}]"


def _escape(text: str) -> str:
    for sign in "&%#_$":
        text = text.replace(sign, "\\" + sign)
    return text
