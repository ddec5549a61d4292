"""Run every method of methods.toml on mini and judge it; a stopped run goes on where it was.

python benchmarks/methods.py [--jobs 2]    # what is missing, then docs/methods/results.md, its chart, the README
python benchmarks/methods.py --pages       # the pages only, from records/methods.jsonl
efface bench benchmarks/methods.toml -o build/bench    # the same runs, without the pages
"""

import tomllib
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from statistics import median

from _bench import DOCS, FOLDER, HERE, README, arguments, on_record, put_in, read_bench, run

from efface.concept import Concept, table
from efface.edits.edit import Edit
from efface.evaluation.bench.file import Chosen
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import jobs as planned
from efface.evaluation.compare import check_comparable
from efface.evaluation.evaluate import images
from efface.evaluation.prompts import implicit_prompts
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.models.model import Model
from efface.query import Query
from efface.report import grid
from efface.util.files import writing

BENCH = read_bench("methods")
INTRO = """# Every method on mini

`python benchmarks/methods.py` made this page from `benchmarks/methods.toml`. Each number is in
`benchmarks/records/methods.jsonl`, with the edit's settings, seed and commit; the command makes the
edits again.

Images: {steps} steps of {solver}, guidance {guidance:g}.
Presets called `mini` were chosen once for all concepts on {development}, which are
in no table ([how](presets.md)). Half of the other objects are preserved; for a style, half
of the other styles too.

- *Erased*: share of images of the concept in which the judge no longer names it first (ESR-1), or
  not among its first five names (ESR-5). Higher is better.
- *Implicit*: ESR-1 for implicit prompts, which ask for the concept by keywords, without its name.
- *Related*, *others*: share of images of other concepts that the judge still knows (PSR). Higher is
  better. Others are the unrelated concepts that were **not** to be preserved.
- *SSIM* compares the images of unrelated prompts with those of the untouched model from the same noise.
- *Seconds* is the median time of one edit on one thread.

In brackets: 95 % intervals (Wilson), pooled over concepts. Images of one concept share an edit, so
true intervals are wider.
"""


def kind(concepts: Sequence[Concept]) -> str:
    """Return "object", "identity" or "style", or "several" for concepts that were erased at once."""
    return "several" if len(concepts) > 1 else concepts[0].kind


def kind_of(row: Scored) -> str:
    """Return the kind of what a record is about."""
    return kind([table(BENCH.model)[name] for name in row.concepts])


def score(rows: Sequence[Scored], group: str, side: str = "after", gone: bool = False) -> Share | None:
    """Pool a share over records: of the images judged right, or with `gone` of the others. side: as in `Summary`."""
    found = [getattr(row.summaries[group], side) for row in rows if group in row.summaries]
    total = sum(found, Share(hits=0, n=0))
    if not total.n:
        return None
    return total.rest if gone else total


def percent(share: Share | None, interval: bool = True) -> str:
    """Write a share in per cent."""
    if share is None:
        return ""
    ends = f" [{100 * share.interval.low:.0f}, {100 * share.interval.high:.0f}]" if interval else ""
    return f"{100 * share.value:.1f}{ends}"


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    found = list(values)
    return sum(found) / max(1, len(found))


def ssim(rows: Sequence[Scored]) -> str:
    """Write the mean similarity of images of unrelated prompts, "" where it was not measured."""
    found = [one.value for one in (row.mean("ssim", "unrelated") for row in rows) if one]
    return f"{mean(found):.3f}" if found else ""


COLUMNS: dict[str, Callable[[Sequence[Scored]], str]] = {
    "erased, ESR-1": lambda rows: percent(score(rows, "target", gone=True)),
    "ESR-5": lambda rows: percent(score(rows, "target", "after5", gone=True), False),
    "implicit, ESR-1": lambda rows: percent(score(rows, "implicit", gone=True)),
    "related, PSR-1": lambda rows: percent(score(rows, "related")),
    "others, PSR-1": lambda rows: percent(score(rows, "unpreserved")),
    "PSR-5": lambda rows: percent(score(rows, "unpreserved", "after5"), False),
    "SSIM": ssim,
    "weights changed": lambda rows: f"{100 * mean(row.whole['changed_weights'] for row in rows):.1f} %",
    "seconds": lambda rows: f"{median(row.erasing.seconds for row in rows if row.erasing):.1f}",
}
SHORT = ("erased, ESR-1", "implicit, ESR-1", "related, PSR-1", "others, PSR-1", "seconds")
UNTOUCHED = {
    "erased, ESR-1": "target", "implicit, ESR-1": "implicit",
    "related, PSR-1": "related", "others, PSR-1": "unpreserved",
}  # fmt: skip


def of(chosen: Chosen, rows: Sequence[Scored]) -> list[Scored]:
    """Return the records of one method with one preset."""
    return [row for row in rows if (row.edit.method, row.edit.preset) == (chosen.name, chosen.preset)]


def section(title: str, rows: Sequence[Scored], of_kind: str, columns: Sequence[str] = tuple(COLUMNS)) -> list[str]:
    """Return one table: a row for each method and preset, over the concepts of a kind that are on record."""
    rows = [row for row in rows if kind_of(row) == of_kind]
    if not rows:
        return []
    settings = len({row.concepts for row in rows})
    shown = [name for name in columns if any(COLUMNS[name]([row]) for row in rows)]
    first = of(BENCH.methods[0], rows) or rows
    before = {n: percent(score(first, g, "before", gone="ESR" in n), False) for n, g in UNTOUCHED.items()}
    lines = [f"## {title}", "", f"| method | preset | {' | '.join(shown)} |", "|---|---" + "|---" * len(shown) + "|"]
    lines.append("| *untouched* | | " + " | ".join(before.get(name, "") for name in shown) + " |")
    for chosen in BENCH.methods:
        own = of(chosen, rows)
        if own:
            missing = "" if len(own) == settings else f" ({len(own)} of {settings})"
            cells = " | ".join(COLUMNS[name](own) for name in shown)
            lines.append(f"| `{chosen.name}`{missing} | {chosen.preset} | {cells} |")
    counts = ", ".join(f"{group} {summary.after.n}" for group, summary in rows[0].summaries.items())
    lines += ["", f"Images a concept and method: {counts}."]
    done = {" and ".join(row.concepts) for row in rows}
    wanted = [" and ".join(one.name for one in c) for c in BENCH.concepts if kind(c) == of_kind]
    left = [name for name in wanted if name not in done]
    lines += [f"**Not measured yet: {', '.join(left)}.**"] if left else []
    return [*lines, ""]


def write(rows: Sequence[Scored]) -> None:
    """Write the page, the chart and the README's table."""
    check_comparable(rows)
    development = tomllib.loads((HERE / "presets.toml").read_text(encoding="utf-8"))["concepts"]
    sampling = rows[0].sampling
    about = {"steps": sampling.steps, "solver": sampling.solver, "guidance": sampling.guidance}
    lines = [
        INTRO.format(**about, development=" and ".join(development)),
        "![erased against others](../assets/methods.svg)",
        "",
    ]
    lines += section("One object at a time", rows, "object")
    lines += section("One person at a time", rows, "identity")
    lines += section("One style at a time", rows, "style")
    lines += section("Five objects at once", rows, "several")
    pictures = sorted((DOCS / "assets" / "sheets").glob("*.png"))
    lines += ["## Images", "", "Church erased: the same seeds before and after.", ""] if pictures else []
    lines += [f"### {path.stem}\n\n![{path.stem}](../assets/sheets/{path.name})\n" for path in pictures]
    with writing(DOCS / "methods" / "results.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    chart(rows)
    put_in(README, "methods", section("One object at a time", rows, "object", SHORT)[2:])


def chart(rows: Sequence[Scored]) -> None:
    """Draw erased against kept, one mark for each method, over objects."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    marks = cycle("osD^vP*Xhp<>8dHs1")
    for chosen in BENCH.methods:
        own = [row for row in of(chosen, rows) if kind_of(row) == "object"]
        x, y = score(own, "target", gone=True), score(own, "unpreserved")
        if x and y:
            ends = [[[abs(s.value - s.interval.low)], [abs(s.interval.high - s.value)]] for s in (x, y)]
            axes.errorbar(
                x.value, y.value, xerr=ends[0], yerr=ends[1], fmt=next(marks), label=chosen.label, elinewidth=0.7
            )
    axes.set(xlabel="erased: ESR-1 of the concept", ylabel="others: PSR-1 of unpreserved objects")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with writing(DOCS / "assets" / "methods.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


def sheets(name: str = "church") -> None:
    """Draw for each method: rows erased, keywords, two related, three unrelated; columns original and edited."""
    known, model, folder = table(BENCH.model), Model.load(BENCH.model), Folder(FOLDER)
    concept = known[name]
    far = [c for c in known.values() if c.kind == "object" and c.name not in (name, *concept.related)]
    rows = [concept.texts[0], implicit_prompts(concept.keywords)[0], *(known[n].texts[0] for n in concept.related[:2])]
    rows += [c.texts[0] for c in far[1 :: len(far) // 3][:3]]
    queries = [Query(prompt, seed, **BENCH.plan.sampling) for prompt in rows for seed in range(4)]
    original = images(model, None, queries).unflatten(0, (len(rows), 4))
    (DOCS / "assets" / "sheets").mkdir(exist_ok=True)
    for job in planned(BENCH, model.id):
        if job.what == "edit" and job.concepts == (concept,) and folder.done(job):
            edited = images(model, Edit.load(folder.path(job)), queries).unflatten(0, (len(rows), 4))
            cells = [[before, after] for before, after in zip(original, edited, strict=True)]
            picture = grid.sheet(cells, rows, ["original", job.method.label], side=64)
            grid.save(picture, DOCS / "assets" / "sheets" / f"{job.method.label.replace(':', '-')}.png")


def main() -> None:
    """Run what is missing, draw the sheets, write the pages."""
    options = arguments(__doc__)
    if not options.pages:
        run("methods", options)
        sheets()
    rows, _ = on_record("methods")
    write(rows)


if __name__ == "__main__":
    main()
