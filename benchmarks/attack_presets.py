"""Choose the attacks' presets called mini: every setting of attack_presets.toml on concepts that are in no table.

    python benchmarks/attack_presets.py [--jobs 2]    # what is missing, then docs/attack_presets.md
    python benchmarks/attack_presets.py --pages       # the page only, from records/attack_presets-attacks.jsonl

The rule, stated before anything was measured: of an attack's settings whose success is at most ten points below that of
the best one, the one that takes the least processor time. Shares are pooled over concepts and methods.
"""

from collections.abc import Sequence
from statistics import mean

from _bench import DOCS, arguments, on_record, read_bench, run, settings, written

from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.bench.file import Chosen
from efface.evaluation.summary import Share
from efface.util.files import writing

BENCH = read_bench("attack_presets")
SHORT = 0.10  # of the best share, at most
PAGE = """# How the attacks' presets of mini were chosen

`python benchmarks/attack_presets.py` made this page; each number is in
`benchmarks/records/attack_presets-attacks.jsonl`. Every setting attacked what {methods} had erased:
{concepts}, which are in no table of results. The rule: of an attack's settings whose success is at
most ten points below that of the best one, the one that takes the least processor time.

Shares of images that show the concept, in %, with 95 % intervals (Wilson), pooled over concepts and
methods; seconds are those of one processor for one attack, its images included. **Bold**: chosen.

| attack | setting | {methods_header} | all | seconds |
|---|---|{rules}---|---|
"""


def of(chosen: Chosen, rows: Sequence[AttackRecord], method: str = "") -> list[AttackRecord]:
    """Return the records of one setting, on one method or all."""
    fields = settings(chosen)
    own = [row for row in rows if row.attack.name == chosen.name and row.attack.fields == fields]
    return [row for row in own if method in ("", row.edit.method)]


def success(rows: Sequence[AttackRecord]) -> Share:
    """Return the share of images under attack that show the concept."""
    return Share.of([one.after for row in rows for one in row.rows])


def seconds(rows: Sequence[AttackRecord]) -> float:
    """Return the mean processor time of an attack."""
    return mean(row.attacking.cpu_seconds or 0.0 for row in rows if row.attacking)


def best(choices: Sequence[Chosen], rows: Sequence[AttackRecord]) -> Chosen:
    """Return the setting that the rule chooses."""
    top = max(success(of(one, rows)).value for one in choices)
    near = [one for one in choices if success(of(one, rows)).value >= top - SHORT]
    return min(near, key=lambda one: seconds(of(one, rows)))


def percent(share: Share) -> str:
    """Write a share in per cent."""
    return f"{100 * share.value:.0f} [{100 * share.interval.low:.0f}, {100 * share.interval.high:.0f}]"


def write(rows: Sequence[AttackRecord]) -> None:
    """Write the page and print what was chosen; settings that were not tried on everything are left out."""
    everything = len(BENCH.concepts) * len(BENCH.methods)
    done = [one for one in BENCH.attacks if len(of(one, rows)) == everything]
    lines = []
    for name in dict.fromkeys(one.name for one in done):
        choices = [one for one in done if one.name == name]
        chosen = best(choices, rows)
        print(f"{name}: " + written(chosen))
        for one in choices:
            mark = "**" * (one == chosen)
            shares = [percent(success(of(one, rows, method.name))) for method in BENCH.methods]
            given = written(one)
            cells = " | ".join([*shares, percent(success(of(one, rows)))])
            lines.append(f"| `{name}` | {mark}{given}{mark} | {cells} | {seconds(of(one, rows)):.0f} |")
    names = [f"`{method.name}`" for method in BENCH.methods]
    head = PAGE.format(
        methods=", ".join(names), concepts=" and ".join(c[0].name for c in BENCH.concepts),
        methods_header=" | ".join(names), rules="---|" * len(names),
    )  # fmt: skip
    with writing(DOCS / "attack_presets.md") as path:
        path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is missing, then write the page."""
    options = arguments(__doc__)
    if not options.pages:
        run("attack_presets", options)
    write(on_record("attack_presets")[1])


if __name__ == "__main__":
    main()
