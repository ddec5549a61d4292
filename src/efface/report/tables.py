"""Tables of judged accuracy from records: Markdown, CSV, LaTeX, and for a terminal."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from efface.errors import BadInput
from efface.evaluation.compare import check_comparable
from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share, Summary

Measure = Literal["top1", "top5"]
TITLES = {group.name: group.title for group in GROUPS}


class Table(NamedTuple):
    """Table of text cells: a header and rows."""

    header: list[str]
    rows: list[list[str]]


def present(records: Sequence[Scored]) -> list[str]:
    """Return the groups with at least one image in some record, in the order of GROUPS."""
    named = dict.fromkeys(name for record in records for name in record.summaries)
    known = [group.name for group in GROUPS if group.name in named]
    return known + [name for name in named if name not in known]


def accuracy(records: Sequence[Scored], labels: Sequence[str], measure: Measure = "top1") -> Table:
    """Tabulate groups × (before, one column per record) as "97 % [84, 99]".

    measure: "top1" or "top5". Raises BadInput when the records' profiles differ or labels are missing.
    """
    check_comparable(records)
    if len(labels) != len(records):
        raise BadInput(f"{len(records)} results need as many labels, given {len(labels)}")
    found = [record.summaries for record in records]
    rows = []
    for name in present(records):
        before, after = sides([groups.get(name) for groups in found], measure)
        cells = ["" if share is None else _cell(share) for share in (before, *after)]
        rows.append([TITLES.get(name, name), str(before.n), *cells])
    return Table(["prompts", "images", "before", *labels], rows)


def sides(groups: Sequence[Summary | None], measure: Measure = "top1") -> tuple[Share, list[Share | None]]:
    """Return the share before, of the first record that has the group, and the share after of each record."""
    first = next(group for group in groups if group is not None)
    top5 = measure == "top5"
    after = [group and (group.after5 if top5 else group.after) for group in groups]
    return (first.before5 if top5 else first.before), after


def per_concept(records: Sequence[Scored], labels: Sequence[str]) -> Table:
    """Tabulate every judged concept: its group, accuracy before, and after each edit."""
    check_comparable(records)
    found = [record.singles for record in records]
    rows = []
    for name, first in found[0].items():
        cells = [percent(singles[name].after.value) if name in singles else "" for singles in found]
        told = "preserved" if first.preserved else ""
        rows.append([name, TITLES.get(first.group, first.group), told, percent(first.before.value), *cells])
    return Table(["concept", "group", "edit", "before", *labels], rows)


def scores(records: Sequence[Scored], labels: Sequence[str]) -> Table:
    """Tabulate metrics × groups: means ± the standard error, then scores of sets of images, then of whole edits."""
    named = dict.fromkeys(name for record in records for name in record.groups_scored)
    groups = [one.name for one in GROUPS if one.name in named] + [name for name in named if name not in TITLES]
    rows = [_means(records, name, group) for name in _names(r.scored for r in records) for group in groups]
    rows += [_sets(records, name, group) for name in _names(r.sets for r in records) for group in groups]
    rows += [_whole(records, name) for name in _names(r.whole for r in records)]
    return Table(["metric", "prompts", *labels], [row for row in rows if any(row[2:])])


def markdown(table: Table) -> str:
    """Return a GitHub table, its columns aligned in the source too."""
    lines = [table.header, *table.rows]
    wide = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    return "\n".join(text) + "\n"


def literal(text: str) -> str:
    """Return a text on one line with all signs of Markdown and HTML taken as they are."""
    return re.sub(r"([\\`*_{}\[\]<>#!|~&$])", r"\\\1", " ".join(text.split())).replace("://", ":\\//")


def plain(table: Table) -> str:
    """Return the table for a terminal: aligned columns, two spaces apart."""
    lines = [table.header, *table.rows]
    wide = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)).rstrip() for line in lines)


def to_csv(table: Table) -> str:
    """Return comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue()


def latex(table: Table) -> str:
    """Return a booktabs tabular."""
    columns = "l" + "r" * (len(table.header) - 1)
    body = [" & ".join(_escape(cell) for cell in line) + r" \\" for line in [table.header, *table.rows]]
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def percent(share: float) -> str:
    """Return a share as a whole percentage; 0 % and 100 % only for exact values."""
    value = 100 * share
    if 0 < value < 1 or 99 < value < 100:
        return f"{value:.1f} %"
    return f"{value:.0f} %"


def _names(of_each: Iterable[Iterable[str]]) -> list[str]:
    return sorted({label for labels in of_each for label in labels})


def _means(records: Sequence[Scored], metric: str, group: str) -> list[str]:
    found = [record.mean(metric, group) for record in records]
    cells = ["" if mean is None else f"{mean.value:.3f} ± {mean.error:.3f}" for mean in found]
    return [metric, TITLES.get(group, group), *cells]


def _sets(records: Sequence[Scored], metric: str, group: str) -> list[str]:
    found = [record.sets.get(metric, {}).get(group) for record in records]
    cells = ["" if score is None else f"{score.value:.4g} (n = {score.n})" for score in found]
    return [metric, TITLES.get(group, group), *cells]


def _whole(records: Sequence[Scored], metric: str) -> list[str]:
    return [metric, "", *(f"{record.whole[metric]:.4g}" if metric in record.whole else "" for record in records)]


def _cell(share: Share) -> str:
    low, high = share.interval
    return f"{percent(share.value)} [{100 * low:.0f}, {100 * high:.0f}]"


SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%#_${}"
}


def _escape(text: str) -> str:
    return "".join(SIGNS.get(sign, sign) for sign in text)
