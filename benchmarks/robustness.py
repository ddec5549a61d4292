"""Attack every method of robustness.toml on mini; edits and images are shared with methods.py.

python benchmarks/robustness.py [--jobs 2]    # what is missing, then docs/robustness.md
python benchmarks/robustness.py --pages       # the page only, from records/robustness-attacks.jsonl
"""

from collections.abc import Callable, Iterable, Sequence
from math import comb
from statistics import median
from textwrap import wrap
from typing import NamedTuple

import torch
from _bench import DOCS, README, arguments, on_record, put_in, read_bench, run

from efface.concept import table
from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.bench.file import Chosen
from efface.evaluation.record import Cost, Scored
from efface.evaluation.store import Store
from efface.evaluation.summary import Share
from efface.report import grid
from efface.util.files import writing

BENCH = read_bench("robustness")
TRAINED = ("esd", "ca", "sdd", "fmn", "sa", "kpop", "surgical", "task_vector")
CLOSED = ("uce", "time", "rece")
OBJECTS = ("object", "identity")
SHORT = ("inversion", "unlearndiffatk", "p4d", "ring_a_bell", "derived", "harmless_finetuning", "relearning")
PICTURED = ("church", "dog")
AUDITED, AUDIT = 3, ("inversion", "unlearndiffatk", "p4d", "ring_a_bell", "probe_prompts", "harmless_finetuning")
PAGE = """# What attacks bring back on mini

`python benchmarks/robustness.py` made this page from `benchmarks/robustness.toml`. Each number is in
`benchmarks/records/robustness-attacks.jsonl`, with the edit's and the attack's settings, seeds, judge
and commit.

Each cell is the share of images that show the erased concept, in %, with 95 % intervals (Wilson),
pooled over concepts; *name* is the plain prompt without an attack. The judge that decides was asked
by no attack. Images of one concept share an edit, so true intervals are wider. An empty cell: the
attack refuses the edit (`derived` needs keys and values that changed), or it was not measured; a cell
that is of some of the concepts only names them.

"""
Records = Sequence[AttackRecord]


def of(rows: Records, methods: Sequence[str], attack: str = "") -> list[AttackRecord]:
    """Return the records of some methods, under one attack or under all."""
    return [row for row in rows if row.edit.method in methods and attack in ("", row.attack.name) and row.rows]


def first_presets(rows: Records) -> list[AttackRecord]:
    """Return the records of each method's first preset in the bench: ESD-x and SLD, not ESD-u and SLD-max."""
    first: dict[str, str] = {}
    for chosen in BENCH.methods:
        first.setdefault(chosen.name, chosen.preset)
    return [row for row in rows if row.edit.preset == first.get(row.edit.method)]


def after(rows: Records) -> Share:
    """Return the share of images under attack that show the concept."""
    return Share.of([one.after for row in rows for one in row.rows])


def named(rows: Records) -> Share:
    """Return the share of images of the plain prompt that show it; each edit counts once."""
    edits = {row.edit.id: row for row in rows}
    return Share.of([one.before for row in edits.values() for one in row.rows])


class Claim(NamedTuple):
    """A finding of a paper as a comparison on mini: the first share is larger than the second."""

    text: str
    source: str
    larger: Callable[[Records], Share]
    smaller: Callable[[Records], Share]


def _brings_back(method: str) -> Claim:
    return Claim(
        f"Concept Inversion brings back what `{method}` erased", "Pham et al. 2024, table 2; Pham et al. 2023",
        lambda rows: after(of(rows, (method,), "inversion")), lambda rows: named(of(rows, (method,), "inversion")),
    )  # fmt: skip


def _weaker(text: str, source: str, weak: Sequence[str], strong: Sequence[str], attack: str) -> Claim:
    return Claim(text, source, lambda rows: after(of(rows, weak, attack)), lambda rows: after(of(rows, strong, attack)))


TABLE_4 = {
    "concept_vector": "the concept vector (its “Ring-A-Bell”)",
    "unlearndiffatk": "UnlearnDiffAtk",
    "p4d": "P4D",
}
VECTOR = "Pham et al. 2024, table 2"
CLAIMS = (
    *(_brings_back(method) for method in ("esd", "uce", "negative", "sld")),
    *(
        _weaker(f"the task vector resists Concept Inversion, `{m}` not", VECTOR, (m,), ("task_vector",), "inversion")
        for m in ("esd", "uce", "negative", "sld")
    ),
    *(
        _weaker(f"RECE resists {title} better than UCE", "Gong et al. 2024, table 4", ("uce",), ("rece",), attack)
        for attack, title in TABLE_4.items()
    ),
    _weaker(
        "closed-form edits survive harmless fine-tuning better than trained ones", "SPQR", TRAINED, CLOSED,
        "harmless_finetuning",
    ),
)  # fmt: skip


def verdict(claim: Claim, rows: Records) -> str:
    """Say whether intervals are apart as the claim has them."""
    return compared(claim.larger(rows), claim.smaller(rows))


def compared(larger: Share, smaller: Share) -> str:
    """Say whether the interval of the share that should be the larger lies above the other's."""
    if not (larger.n and smaller.n):
        return "not measured"
    if larger.interval.low > smaller.interval.high:
        return "agrees"
    return "disagrees" if smaller.interval.low > larger.interval.high else "cannot be told"


def percent(share: Share) -> str:
    """Write a share in per cent, "" for no images."""
    if not share.n:
        return ""
    return f"{100 * share.value:.1f} [{100 * share.interval.low:.0f}, {100 * share.interval.high:.0f}]"


def section(title: str, rows: Records, kinds: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """Return one table: a row for each method, a column for each attack, over concepts of some kinds.

    names: of the attacks, all by default.
    """
    known = table(BENCH.model)
    rows = [row for row in rows if known[row.concept].kind in kinds]
    tried = {row.attack.name for row in rows} & set(names or (one.name for one in BENCH.attacks))
    attacks = [one for one in BENCH.attacks if one.name in tried]
    if not attacks:
        return []
    done = list(dict.fromkeys(row.concept for row in rows))
    lines = [f"## {title}", "", f"| method | name | {' | '.join(f'`{a.name}`' for a in attacks)} |"]
    lines.append("|---" * (len(attacks) + 2) + "|")
    for chosen in BENCH.methods:
        own = [row for row in of(rows, (chosen.name,)) if row.edit.preset == chosen.preset]
        if own:
            cells = [_cell([row for row in own if row.attack.name == one.name], done) for one in attacks]
            lines.append(f"| {_called(chosen)} | {percent(named(own))} | {' | '.join(cells)} |")
    one = next(row for row in rows if row.rows)
    text = f"Images a concept, method and attack: {len(one.rows)}; concepts: {', '.join(done)}."
    wanted = [c[0].name for c in BENCH.concepts if c[0].kind in kinds]
    left = [name for name in wanted if name not in done]
    return [*lines, "", text, *([f"**Not measured yet: {', '.join(left)}.**"] if left else []), ""]


def _cell(rows: Records, done: Sequence[str]) -> str:
    """Write the share under an attack, with the concepts it is of where it is not of all that the table has."""
    own = [name for name in done if any(row.concept == name for row in rows)]
    return percent(after(rows)) + (f" ({', '.join(own)})" if own and own != list(done) else "")


def any_of(rows: Records, count: int) -> float:
    """Return the mean chance that one of `count` embeddings, drawn from those found, shows the concept for a seed.

    A seed for which s of n embeddings succeed counts 1 − C(n − s, count) / C(n, count).
    """
    chances = []
    for row in rows:
        n = len(row.found) // len(row.rows)
        for seed in range(len(row.rows)):
            succeeded = sum(row.found[seed :: len(row.rows)])
            chances.append(1 - comb(n - succeeded, count) / comb(n, count))
    return sum(chances) / len(chances)


def embeddings(rows: Records) -> list[str]:
    """Return how much more several embeddings of Diverse Inversion bring back than one: a row for each method."""
    rows = [row for row in of(rows, [one.name for one in BENCH.methods], "diverse_inversion") if row.found]
    if not rows:
        return []
    most = min(len(row.found) // len(row.rows) for row in rows)
    counts = [count for count in (1, 2, 3, 5, 10, 20) if count < most] + [most]
    lines = ["## How many embeddings", "", f"| method | name | {' | '.join(map(str, counts))} |"]
    lines.append("|---" * (len(counts) + 2) + "|")
    for chosen in BENCH.methods:
        own = [row for row in of(rows, (chosen.name,)) if row.edit.preset == chosen.preset]
        if own:
            cells = " | ".join(f"{100 * any_of(own, count):.1f}" for count in counts)
            lines.append(f"| {_called(chosen)} | {percent(named(own))} | {cells} |")
    text = (
        "Mean chance, in %, that at least one of so many embeddings of Diverse Inversion shows the concept with a seed "
        "(expected over all choices of them; they were learned on the untouched model). Pham et al. 2024 find that "
        "fewer than five give a false sense of security (figure 12)."
    )
    return [*lines, "", *wrap(text, 100), ""]


def costs(rows: Records) -> list[str]:
    """Return where the time goes: processor seconds of one attack, and hours of all on record."""
    lines = ["## Cost", "", "| attack | median | longest | all |", "|---|---|---|---|"]
    total = 0.0
    for one in BENCH.attacks:
        own = [row.attacking for row in rows if row.attack.name == one.name and row.attacking]
        seconds = [cost.cpu_seconds for cost in own if cost.cpu_seconds is not None]
        if seconds:
            total += sum(seconds)
            cells = f"{median(seconds):.0f} s | {max(seconds):.0f} s | {sum(seconds) / 3600:.2f} h"
            lines.append(f"| `{one.name}` | {cells} |")
    concepts = ", ".join(dict.fromkeys(row.concept for row in rows))
    text = (
        f"Processor time, images and judging included, on {concepts}: {total / 3600:.1f} hours in all. What is learned "
        "or generated through the untouched model is made once for all methods, by the attack that needs it first."
    )
    return [*lines, "", *wrap(text, 100), ""]


def whole_audit(scored: Sequence[Scored], rows: Records) -> list[str]:
    """Return what every method on three concepts with six attacks takes: means on record, added up over methods."""
    edits, judging, attacks = 0.0, 0.0, 0.0
    for chosen in BENCH.methods:
        own = [row for row in scored if (row.edit.method, row.edit.preset) == (chosen.name, chosen.preset)]
        edits += _mean(row.erasing for row in own)
        judging += _mean(row.evaluating for row in own)
        under = [row for row in of(rows, (chosen.name,)) if row.edit.preset == chosen.preset]
        attacks += sum(_mean(row.attacking for row in under if row.attack.name == name) for name in AUDIT)
    hours = [AUDITED * seconds / 3600 for seconds in (edits, judging, attacks)]
    names = ", ".join(f"`{name}`" for name in AUDIT)
    text = (
        f"**The whole audit**, {len(BENCH.methods)} methods and presets on {AUDITED} concepts under {len(AUDIT)} "
        f"attacks ({names}), takes {sum(hours):.1f} hours of one core by these means, {sum(hours) / 2:.1f} on two: "
        f"{hours[0]:.1f} for the edits, {hours[1]:.1f} for judging them, {hours[2]:.1f} for the attacks."
    )
    return [*wrap(text, 100), ""]


def _mean(costs: Iterable[Cost | None]) -> float:
    """Return the mean processor seconds of the costs that are known."""
    found = [cost.cpu_seconds for cost in costs if cost is not None and cost.cpu_seconds is not None]
    return sum(found) / max(1, len(found))


def _called(chosen: Chosen) -> str:
    return f"`{chosen.name}`" + (f" {chosen.preset}" if chosen.preset not in ("", BENCH.model) else "")


def strips(rows: Records, name: str, count: int = 3) -> None:
    """Draw methods × (original, erased, under each attack) of one concept, the same seeds in every cell of a row."""
    store, attacks = Store.default(), list(BENCH.attacks)
    cells, labels = [], []
    for chosen in BENCH.methods:
        own = {
            row.attack.name: row
            for row in of(rows, (chosen.name,))
            if row.concept == name and row.edit.preset == chosen.preset
        }
        if len(own) < len(attacks) - 1:  # one may have refused the edit
            continue
        first = next(iter(own.values())).rows[:count]
        keys = [[row.original for row in first], [row.edited for row in first]]
        keys += [[row.attacked for row in own[one.name].rows[:count]] if one.name in own else [] for one in attacks]
        images = [[store.image(key) for key in cell] for cell in keys]
        if all(image is not None for cell in images for image in cell):
            found = [torch.stack([image for image in cell if image is not None]) if cell else None for cell in images]
            empty = torch.ones_like(next(cell for cell in found if cell is not None))
            cells.append([empty if cell is None else cell for cell in found])
            labels.append(_called(chosen).replace("`", ""))
    if cells:
        picture = grid.sheet(cells, labels, ["original", "erased", *(one.name for one in attacks)], side=64)
        grid.save(picture, DOCS / "assets" / f"attacks-{name}.png")


def write(scored: Sequence[Scored], rows: Records) -> None:
    """Write the page."""
    drawn = [name for name in PICTURED if (DOCS / "assets" / f"attacks-{name}.png").exists()]
    lines = [PAGE, *section("Objects", rows, OBJECTS), *section("Styles", rows, ("style",))]
    lines += [
        "## The papers' findings",
        "",
        "| finding | source | larger | smaller | on mini |",
        "|---|---|---|---|---|",
    ]
    firsts = first_presets(rows)
    for claim in CLAIMS:
        shares = f"{percent(claim.larger(firsts))} | {percent(claim.smaller(firsts))}"
        lines.append(f"| {claim.text} | {claim.source} | {shares} | {verdict(claim, firsts)} |")
    lines += [
        "",
        "*Agrees* and *disagrees*: the intervals are apart. `esd` is ESD-x and `sld` SLD's preset `mini`.",
        "",
    ]
    lines += [*embeddings(rows), *costs(rows), *whole_audit(scored, rows)]
    lines += [f"## {name}\n\n![{name} under attack](assets/attacks-{name}.png)\n" for name in drawn]
    with writing(DOCS / "robustness.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    put_in(README, "attacks", section("Objects", rows, OBJECTS, SHORT)[2:])


def main() -> None:
    """Run what is missing, then write the page."""
    options = arguments(__doc__)
    if not options.pages:
        run("robustness", options)
        for name in PICTURED:
            strips(on_record("robustness")[1], name)
    write(*on_record("robustness"))


if __name__ == "__main__":
    main()
