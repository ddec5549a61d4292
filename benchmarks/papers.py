"""Run the papers' tables in miniature, each by its protocol, and write them beside the papers' own numbers.

python benchmarks/papers.py [NAME ...] [--jobs 2]    # what is missing of all or of some, then docs/results/
python benchmarks/papers.py --pages                  # the pages only, from records/papers-*.jsonl
efface bench protocol:NAME --model mini -o FOLDER    # the runs of one table, without its page
"""

import tomllib
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from _bench import DOCS, HERE, arguments, on_record, run_bench

from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.bench.file import Bench, Chosen
from efface.evaluation.protocol import find, read
from efface.evaluation.record import Scored
from efface.evaluation.stats import Interval
from efface.evaluation.summary import Share
from efface.util.files import writing

TABLES: list[dict[str, Any]] = tomllib.loads((HERE / "papers.toml").read_text(encoding="utf-8"))["table"]
PAGE = """# {title}

{source}.

Made by `python benchmarks/papers.py {protocol}` ({created}, commit {git}) from the protocol
[`{protocol}`](../bench.md); the records are in `benchmarks/records/papers-{protocol}.jsonl`. On mini
({concepts}), not on Stable Diffusion: what can agree is the order of the methods, not the numbers.
In brackets: 95 % intervals, pooled over concepts; images of one concept share an edit, so true
intervals are wider.{also}

"""


class Cell(NamedTuple):
    """A number of mini with its interval, where it has one."""

    value: float
    interval: Interval | None = None

    def __str__(self) -> str:
        ends = f" [{self.interval.low:.3g}, {self.interval.high:.3g}]" if self.interval else ""
        return f"{self.value:.3g}{ends}"


class Results(NamedTuple):
    """What is on record of one method."""

    scored: list[Scored]
    attacks: list[AttackRecord]


def _is(chosen: str, name: str) -> bool:
    return chosen in (name, f"{name}:mini")


def results(chosen: Chosen, rows: Sequence[Scored], attacks: Sequence[AttackRecord]) -> Results:
    """Return the records of a method with its preset."""
    own = (chosen.name, chosen.preset)
    mine = [row for row in rows if (row.edit.method, row.edit.preset) == own]
    return Results(mine, [row for row in attacks if (row.edit.method, row.edit.preset) == own])


def _share(shares: Sequence[Share], gone: bool = False) -> Cell | None:
    total = sum(shares, Share(hits=0, n=0))
    total = total.rest if gone else total
    if not total.n:
        return None
    low, high = total.interval
    return Cell(100 * total.value, Interval(100 * low, 100 * high))


def _mean(column: dict[str, Any], rows: Sequence[Scored]) -> Cell | None:
    metric, group = column["metric"], column["group"]
    flip = (lambda x: 1 - x) if column.get("inverted") else (lambda x: x)
    sets = [row.sets[metric][group].value for row in rows if group in row.sets.get(metric, {})]
    if sets:
        return Cell(flip(sum(sets) / len(sets)))
    means = [mean for row in rows if (mean := row.mean(metric, group))]
    if not means:
        return None
    value = flip(sum(mean.value for mean in means) / len(means))
    error = 1.96 * sum(mean.error**2 for mean in means) ** 0.5 / len(means)
    return Cell(value, Interval(value - error, value + error))


def cell(column: dict[str, Any], found: Results, side: str = "after") -> Cell | None:
    """Return mini's number for a column; None where there is none. side: "after", or "before" the edit."""
    if "attack" in column:
        rows = [row for one in found.attacks if _is(_label(one), column["attack"]) for row in one.rows]
        return _share([Share.of([row.after for row in rows])]) if rows and side == "after" else None
    if "metric" in column:
        return _mean(column, found.scored) if side == "after" else None
    if "group" in column:
        wanted = [column["group"]] if isinstance(column["group"], str) else column["group"]
        groups = [row.summaries[name] for row in found.scored for name in wanted if name in row.summaries]
        return _share([getattr(one, f"{side}{5 * column['top5']}" if "top5" in column else side) for one in groups],
                      column.get("gone", False))  # fmt: skip
    if side == "before":
        return None
    if "whole" in column:
        values = [row.whole[column["whole"]] for row in found.scored if column["whole"] in row.whole]
        return Cell(sum(values) / len(values) * (100 if column.get("percent") else 1)) if values else None
    seconds = sorted(row.erasing.seconds for row in found.scored if row.erasing)
    return Cell(seconds[len(seconds) // 2]) if seconds else None


def _label(record: AttackRecord) -> str:
    return record.attack.name + (f":{record.attack.preset}" if record.attack.preset else "")


def order(paper: dict[str, float], mini: dict[str, Cell]) -> str:
    """Say whether methods stand in the paper's order: of all pairs that it tells apart, and of those apart on mini."""
    pairs = [(a, b) for a, b in combinations(sorted(paper.keys() & mini.keys()), 2) if paper[a] != paper[b]]
    if not pairs:
        return ""
    as_paper = [(paper[a] - paper[b]) * (mini[a].value - mini[b].value) > 0 for a, b in pairs]
    apart = [_apart(mini[a], mini[b]) for a, b in pairs]
    told = [agrees for agrees, clear in zip(as_paper, apart, strict=True) if clear]
    clear = (
        f"; of the {len(told)} with intervals apart on mini, {sum(told)}"
        if any(m.interval for m in mini.values())
        else ""
    )
    return f"{sum(as_paper)} of {len(pairs)} pairs of methods stand as in the paper{clear}"


def _apart(a: Cell, b: Cell) -> bool:
    if a.interval is None or b.interval is None:
        return a.value != b.value
    return a.interval.high < b.interval.low or b.interval.high < a.interval.low


def page(table: dict[str, Any], bench: Bench) -> str:
    """Return the page of a table, "" where nothing is on record."""
    scored, attacks = on_record(f"papers-{table['protocol']}")
    rows = [row for row in scored if not row.error]
    if not rows:
        return ""
    columns = table["columns"]
    head = [f"{c['label']} | mini" for c in columns]
    lines = [f"| method | {' | '.join(head)} |", "|---" * (1 + 2 * len(columns)) + "|"]
    found = {one.label: results(one, rows, attacks) for one in bench.methods}
    first = next(iter(found.values()))
    lines.append(_line("*untouched*", table["untouched"], [cell(c, first, "before") for c in columns]))
    paper: list[dict[str, float]] = [{} for _ in columns]
    mini: list[dict[str, Cell]] = [{} for _ in columns]
    for name, numbers in table["rows"].items():
        own = next((label for label in found if _is(label, name)), "")
        cells = [cell(c, found[own], "after") if own else None for c in columns]
        lines.append(_line(f"`{name}`", numbers, cells))
        for i, (number, one) in enumerate(zip(numbers, cells, strict=True)):
            paper[i] |= {name: number} if number != "" else {}
            mini[i] |= {name: one} if one else {}
    said = [(c["label"], order(p, m)) for c, p, m in zip(columns, paper, mini, strict=True)]
    lines += ["", *(f"- {label}: {text}." for label, text in said if text), ""]
    erased = "; ".join(dict.fromkeys(row.concept for row in rows))
    made = sorted({row.git for row in (*rows, *attacks) if row.git})
    dates = sorted({row.created[:10] for row in (*rows, *attacks)})
    about = {"created": " to ".join(dict.fromkeys([dates[0], dates[-1]])), "concepts": erased}
    about |= {"git": ", ".join(made), "also": f" {table['note']}" if "note" in table else ""}
    return PAGE.format(**table, **about) + "\n".join(lines)


def _line(name: str, numbers: Sequence[Any], cells: Sequence[Cell | None]) -> str:
    both = [f"{number} | {'' if one is None else one}" for number, one in zip(numbers, cells, strict=True)]
    return f"| {name} | {' | '.join(both)} |"


def main() -> None:
    """Run what is missing, then write the pages and their index."""
    options = arguments(__doc__, "names of tables; all without one")
    chosen = [table for table in TABLES if not options.names or table["protocol"] in options.names]
    for table in chosen:
        if not options.pages:
            run_bench(f"papers-{table['protocol']}", read(find(table["protocol"])), options)
    index = [
        "# The papers' tables in miniature",
        "",
        "Each beside the paper's numbers, with the command that makes it.",
        "",
    ]
    (DOCS / "results").mkdir(exist_ok=True)
    for table in TABLES:
        text = page(table, read(find(table["protocol"])))
        if text:
            with writing(DOCS / "results" / f"{table['protocol']}.md") as path:
                path.write_text(text, encoding="utf-8")
            index.append(f"- [{table['title']}]({table['protocol']}.md): {table['source']}")
    with writing(DOCS / "results" / "index.md") as path:
        path.write_text("\n".join([*index, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
