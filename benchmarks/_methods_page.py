"""Turn the record of methods.py into docs/methods/results.md, its chart, and a sheet of pictures for each method."""

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median

from efface.edits.edit import Edit
from efface.evaluation.compare import check_comparable
from efface.evaluation.evaluate import images
from efface.evaluation.prompts import implicit_prompts
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.query import Query
from efface.report import grid
from efface.util.files import writing
from methods import FIVE, SETUP, drawn, jobs, mini, plan

DOCS = Path(__file__).parent.parent / "docs"

INTRO = """# Every method on mini

`python benchmarks/methods.py` made this page from `benchmarks/methods.toml`. Each number is in
`benchmarks/records/methods.jsonl`, with the edit's settings, seed and commit; the command makes the
edits again.
{what}

- *Erased*: share of images of the concept in which the judge no longer names it first (ESR-1), or
  not among its first five names (ESR-5). Higher is better.
- *Implicit*: ESR-1 for implicit prompts, which ask for the concept by keywords, without its name.
- *Related*, *others*: share of images of other concepts that the judge still knows (PSR). Higher is
  better. Others are the unrelated concepts that were **not** to be preserved, or all unrelated ones
  where nothing was.
- *SSIM* compares the images of unrelated prompts with those of the untouched model from the same noise.
- *Seconds* and *MB* are medians. Time is that of one processor; where only wall time is on record,
  taken while other jobs ran beside it, it is an upper bound. Memory is what erasing took beyond the
  loaded model.

In brackets: 95 % intervals (Wilson), pooled over concepts. Images of one concept share an edit, so
true intervals are wider.
"""


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


def others(rows: Sequence[Scored]) -> str:
    """Return the group of what was not preserved: all that is unrelated where nothing was to be."""
    return "unpreserved" if all("unpreserved" in row.summaries for row in rows) else "unrelated"


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def seconds(rows: Sequence[Scored]) -> list[float]:
    """Return processor seconds, or wall seconds (more, beside other jobs) where nothing else is on record."""
    costs = [row.erasing for row in rows if row.erasing]
    return [cost.cpu_seconds for cost in costs if cost.cpu_seconds is not None] or [cost.seconds for cost in costs]


def memory(rows: Sequence[Scored]) -> list[float]:
    """Return what erasing took beyond the loaded model, MB."""
    return [c.peak_mb - c.loaded_mb for c in (row.erasing for row in rows) if c and c.peak_mb and c.loaded_mb]


def ssim(rows: Sequence[Scored]) -> float:
    return mean(found.value for found in (row.mean("ssim", "unrelated") for row in rows) if found)


COLUMNS: dict[str, Callable[[Sequence[Scored]], str]] = {
    "erased, ESR-1": lambda rows: percent(score(rows, "target", gone=True)),
    "ESR-5": lambda rows: percent(score(rows, "target", "after5", gone=True), False),
    "implicit, ESR-1": lambda rows: percent(score(rows, "implicit", gone=True)),
    "related, PSR-1": lambda rows: percent(score(rows, "related")),
    "others, PSR-1": lambda rows: percent(score(rows, others(rows))),
    "PSR-5": lambda rows: percent(score(rows, others(rows), "after5"), False),
    "SSIM": lambda rows: f"{ssim(rows):.3f}",
    "weights changed": lambda rows: f"{100 * mean(row.whole['changed_weights'] for row in rows):.1f} %",
    "seconds": lambda rows: f"{median(seconds(rows)):.1f}",
    "MB": lambda rows: f"{median(memory(rows)):.0f}",
}


SHORT = ("erased, ESR-1", "implicit, ESR-1", "related, PSR-1", "others, PSR-1", "seconds")


def section(
    title: str, rows: Sequence[Scored], settings: Sequence[str], columns: Sequence[str] = tuple(COLUMNS)
) -> list[str]:
    """Return one table: a row for each method and preset, over the settings that are on record."""
    rows = [row for row in rows if row.name in settings]
    if not rows:
        return []
    shown = [name for name in columns if any(COLUMNS[name]([r]) for r in rows)]
    lines = [f"## {title}", "", f"| method | preset | {' | '.join(shown)} |", "|---|---" + "|---" * len(shown) + "|"]
    seen = [row.summaries for row in rows]
    untouched = {"erased, ESR-1": "target", "related, PSR-1": "related", "others, PSR-1": others(rows)}
    before = {
        name: percent(score(rows, group, "before", gone=name.startswith("erased")), False)
        for name, group in untouched.items()
        if any(group in groups for groups in seen)
    }
    lines.append("| *untouched* | | " + " | ".join(before.get(name, "") for name in shown) + " |")
    for entry in SETUP["method"]:
        own = [row for row in rows if (row.edit.method, row.edit.preset) == (entry["name"], entry.get("preset", ""))]
        if own:
            missing = "" if len(own) == len(settings) else f" ({len(own)} of {len(settings)})"
            cells = " | ".join(COLUMNS[name](own) for name in shown)
            lines.append(f"| `{entry['name']}`{missing} | {entry.get('preset', '')} | {cells} |")
    counts = ", ".join(f"{group} {summary.after.n}" for group, summary in seen[0].items())
    return [*lines, "", f"Images a concept and method: {counts}.", ""]


def write(rows: Sequence[Scored]) -> None:
    """Write the page and the chart."""
    if not rows:
        return
    check_comparable(rows)
    sampling = rows[0].sampling
    what = (
        f"\nImages: {sampling.steps} steps of {sampling.solver}, guidance {sampling.guidance:g}, bfloat16.\n"
        "Presets called `mini` were chosen once for all concepts on "
        f"{', '.join(SETUP['development'])},\nwhich are in no table. Half of the other objects are preserved; "
        "for a style, half of the other\nstyles too."
    )
    lines = [INTRO.format(what=what), "![erased against others](../assets/methods.svg)", ""]
    lines += section("One object at a time", rows, SETUP["objects"])
    lines += section("One style at a time", rows, SETUP["styles"])
    for setting in FIVE:
        title = "Five of the ten objects at once" + (", the others preserved" if "kept" in setting else "")
        lines += section(title, rows, [setting])
    pictures = sorted((DOCS / "assets" / "sheets").glob("*.png"))
    lines += ["## Images", "", "Church erased: the same seeds before and after.", ""] if pictures else []
    lines += [f"### {path.stem}\n\n![{path.stem}](../assets/sheets/{path.name})\n" for path in pictures]
    with writing(DOCS / "methods" / "results.md") as path:
        path.write_text("\n".join(lines))
    chart(rows)
    readme(rows)


def readme(rows: Sequence[Scored]) -> None:
    """Put a short table between the markers of the README."""
    path = DOCS.parent / "README.md"
    begin, end = "<!-- methods: begin -->\n", "<!-- methods: end -->"
    head, rest = path.read_text().split(begin)
    lines = section("One object at a time", rows, SETUP["objects"], SHORT)[2:-2]
    with writing(path) as temporary:
        temporary.write_text(head + begin + "\n".join(lines) + end + rest.split(end)[1])


def chart(rows: Sequence[Scored]) -> None:
    """Draw erased against kept, one mark for each method, over objects."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    marks = cycle("osD^vP*Xhp<>8dHs1")
    for entry in SETUP["method"]:
        own = [row for row in rows if (row.edit.method, row.edit.preset) == (entry["name"], entry.get("preset", ""))]
        own = [row for row in own if row.name in SETUP["objects"]]
        x, y = (score(own, "target", gone=True), score(own, others(own))) if own else (None, None)
        if x and y:
            ends = [[[abs(s.value - s.interval.low)], [abs(s.interval.high - s.value)]] for s in (x, y)]
            label = f"{entry['name']} {entry.get('preset', '')}"
            axes.errorbar(x.value, y.value, xerr=ends[0], yerr=ends[1], fmt=next(marks), label=label, elinewidth=0.7)
    axes.set(xlabel="erased: ESR-1 of the concept", ylabel="others: PSR-1 of unpreserved objects")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with writing(DOCS / "assets" / "methods.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


def sheets(setting: str = "church") -> None:
    """Draw for each method: rows erased, keywords, two related, three unrelated; columns original and edited."""
    known = mini()[1]
    concept = known[setting]
    far = [c for c in known.values() if c.kind == "object" and c.name not in (setting, *concept.related)]
    rows = [concept.texts[0], implicit_prompts(concept.keywords)[0], *(known[n].texts[0] for n in concept.related[:2])]
    rows += [c.texts[0] for c in far[1 :: len(far) // 3][:3]]
    queries = [Query(prompt, seed, **plan().sampling) for prompt in rows for seed in range(4)]
    draw = lambda edit: images(drawn(), edit, queries, any_base=True).unflatten(0, (len(rows), 4))  # noqa: E731
    original = draw(None)
    (DOCS / "assets" / "sheets").mkdir(exist_ok=True)
    for job in jobs():
        if job.setting == setting and job.path.exists():
            edited = draw(Edit.load(job.path))
            name = f"{job.method}-{job.preset or 'default'}"
            cells = [[before, after] for before, after in zip(original, edited, strict=True)]
            picture = grid.sheet(cells, rows, ["original", f"{job.method} ({job.preset or 'default'})"], side=64)
            grid.save(picture, DOCS / "assets" / "sheets" / f"{name}.png")
