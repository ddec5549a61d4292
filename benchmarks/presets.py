"""Choose the presets called mini: every setting of presets.toml on concepts that are in no table.

    python benchmarks/presets.py [--jobs 2]    # what is missing, then docs/methods/presets.md
    python benchmarks/presets.py --pages       # the page only, from records/presets.jsonl

The rule, stated before anything was measured: of a method's settings that leave at most 5 % of the target, the one that
keeps most of the related and unrelated concepts; where none leaves so little, the one that leaves least. Shares are
pooled over the concepts. Attacks have no say.
"""

from collections.abc import Sequence

from _bench import DOCS, arguments, on_record, read_bench, run, settings, written

from efface.evaluation.bench.file import Chosen
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.util.files import writing

BENCH = read_bench("presets")
LEFT = 0.05  # of the target, at most
PAGE = """# How the presets of mini were chosen

`python benchmarks/presets.py` made this page; each number is in `benchmarks/records/presets.jsonl`.
Every setting erased {concepts}, which are in no table of results. The rule: of a
method's settings that leave at most 5 % of the target, the one that keeps most of the related and
unrelated concepts; where none leaves so little, the one that leaves least. No attack was asked.

Shares of images in which the judge's first name is right, in %, with 95 % intervals (Wilson).
**Bold**: chosen.

| method | preset | setting | target left | related and unrelated kept | implicit left |
|---|---|---|---|---|---|
"""


def pooled(rows: Sequence[Scored], *groups: str) -> Share:
    """Return the share of right images in some groups, over records."""
    found = [row.summaries[group].after for row in rows for group in groups if group in row.summaries]
    return sum(found, Share(hits=0, n=0))


def of(chosen: Chosen, rows: Sequence[Scored]) -> list[Scored]:
    """Return the records of one setting; a setting that is no preset has no preset's name on record."""
    fields = settings(chosen)
    return [row for row in rows if row.edit.method == chosen.name and row.edit.fields == fields]


def best(choices: Sequence[Chosen], rows: Sequence[Scored]) -> Chosen:
    """Return the setting that the rule chooses."""

    def rank(one: Chosen) -> tuple[bool, float]:
        left, kept = pooled(of(one, rows), "target").value, pooled(of(one, rows), "related", "unrelated").value
        return (True, kept) if left <= LEFT else (False, -left)

    return max(choices, key=rank)


def write(rows: Sequence[Scored]) -> None:
    """Write the page."""
    done = [one for one in BENCH.methods if len(of(one, rows)) == len(BENCH.concepts)]
    kinds = dict.fromkeys((one.name, one.preset) for one in done)
    chosen = {kind: best([one for one in done if (one.name, one.preset) == kind], rows) for kind in kinds}
    lines = []
    for one in done:
        mark = "**" if chosen[one.name, one.preset] == one else ""
        setting = written(one)
        shares = [pooled(of(one, rows), *g) for g in (("target",), ("related", "unrelated"), ("implicit",))]
        cells = [f"{100 * s.value:.1f} [{100 * s.interval.low:.0f}, {100 * s.interval.high:.0f}]" for s in shares]
        lines.append(f"| `{one.name}` | {one.preset} | {mark}{setting}{mark} | {' | '.join(cells)} |")
    with writing(DOCS / "methods" / "presets.md") as path:
        text = PAGE.format(concepts=" and ".join(c[0].name for c in BENCH.concepts))
        path.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    for (name, preset), one in chosen.items():
        print(f"{name} {preset}: " + written(one))


def main() -> None:
    """Run what is missing, then write the page."""
    options = arguments(__doc__)
    if not options.pages:
        run("presets", options)
    write(on_record("presets")[0])


if __name__ == "__main__":
    main()
