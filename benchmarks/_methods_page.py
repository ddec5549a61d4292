"""Turn the record of methods.py into docs/methods/results.md, its chart, and a sheet of pictures for each method."""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from efface.edits.edit import Edit
from efface.evaluation.evaluate import images
from efface.evaluation.prompts import hints
from efface.evaluation.stats import wilson
from efface.query import Query
from efface.report import grid
from efface.util.files import writing
from methods import FIVE, SETUP, drawn, jobs, mini, plan

DOCS = Path(__file__).parent.parent / "docs"
Record = dict[str, Any]
Score = tuple[float, float, float, int]  # share, its interval, n

INTRO = """# Every method on mini

Made by `python benchmarks/methods.py` from `benchmarks/methods.toml`; each number is in
`benchmarks/records/methods.jsonl` with the edit's settings, seed and commit, and the command makes the edits again.
{what}

*Erased* is the share of images of the concept that the judge no longer takes for it (ESR-1; ESR-5 when it is not
among the judge's first five either), higher is better; *by keywords* is the same for prompts that only hint at it.
*Related* and *others* are the share of images of other concepts that the judge still knows (PSR), higher is better;
others are the unrelated concepts that were **not** among those to keep (all unrelated ones where nothing was kept).
In brackets: 95 % intervals (Wilson), pooled over concepts; images of one concept share an edit, so true intervals
are wider. SSIM compares the images of unrelated prompts with those of the untouched model from the same noise. Time
and memory are medians; time is that of one processor, and where only wall time is on record, taken while other jobs ran
beside it, an upper bound. Memory is what erasing took beyond the loaded model.
"""


def score(
    rows: Sequence[Record], group: str, top: str = "top1", gone: bool = False, when: str = "after"
) -> Score | None:
    """Pool a proportion over records: the share right, or with `gone` the share not."""
    sides = [r["result"]["groups"][group][when] for r in rows if group in r["result"]["groups"]]
    n = sum(side["n"] for side in sides)
    hits = sum(round(side[top] * side["n"]) for side in sides)
    if not n:
        return None
    hits = n - hits if gone else hits
    low, high = wilson(hits, n)
    return hits / n, low, high, n


def percent(value: Score | None, interval: bool = True) -> str:
    """Write a proportion in per cent."""
    if value is None:
        return ""
    ends = f" [{100 * value[1]:.0f}, {100 * value[2]:.0f}]" if interval else ""
    return f"{100 * value[0]:.1f}{ends}"


def others(rows: Sequence[Record]) -> str:
    """Return the group of what no one protected: all that is unrelated where nothing was kept."""
    return "unprotected" if all("unprotected" in r["result"]["groups"] for r in rows) else "unrelated"


def mean(rows: Sequence[Record], value: Callable[[Record], float]) -> float:
    return sum(map(value, rows)) / len(rows)


def seconds(rows: Sequence[Record]) -> list[float]:
    """Return processor seconds, or wall seconds (more, beside other jobs) where nothing else is on record."""
    return [r["cpu_seconds"] for r in rows if "cpu_seconds" in r] or [r["seconds"] for r in rows]


COLUMNS: dict[str, Callable[[list[Record]], str]] = {
    "erased, ESR-1": lambda rows: percent(score(rows, "target", gone=True)),
    "ESR-5": lambda rows: percent(score(rows, "target", "top5", gone=True), False),
    "by keywords": lambda rows: percent(score(rows, "implicit", gone=True)),
    "related, PSR-1": lambda rows: percent(score(rows, "related")),
    "others, PSR-1": lambda rows: percent(score(rows, others(rows))),
    "PSR-5": lambda rows: percent(score(rows, others(rows), "top5"), False),
    "SSIM": lambda rows: f"{mean(rows, lambda r: r['ssim']['mean']):.3f}",
    "weights changed": lambda rows: f"{100 * mean(rows, lambda r: r['share']):.1f} %",
    "seconds": lambda rows: f"{median(seconds(rows)):.1f}",
    "MB": lambda rows: f"{median(r['peak_mb'] - r['loaded_mb'] for r in rows):.0f}",
}


SHORT = ("erased, ESR-1", "by keywords", "related, PSR-1", "others, PSR-1", "seconds")


def section(
    title: str, rows: list[Record], settings: Sequence[str], columns: Sequence[str] = tuple(COLUMNS)
) -> list[str]:
    """Return one table: a row for each method and preset, over the settings that are on record."""
    rows = [r for r in rows if r["setting"] in settings]
    if not rows:
        return []
    shown = [name for name in columns if any(COLUMNS[name]([r]) for r in rows)]
    lines = [f"## {title}", "", f"| method | preset | {' | '.join(shown)} |", "|---|---" + "|---" * len(shown) + "|"]
    seen = [r["result"]["groups"] for r in rows]
    untouched = {"erased, ESR-1": "target", "related, PSR-1": "related", "others, PSR-1": others(rows)}
    before = {
        name: percent(score(rows, group, gone=name.startswith("erased"), when="before"), False)
        for name, group in untouched.items()
        if any(group in groups for groups in seen)
    }
    lines.append("| *untouched* | | " + " | ".join(before.get(name, "") for name in shown) + " |")
    for entry in SETUP["method"]:
        own = [r for r in rows if (r["method"], r["preset"]) == (entry["name"], entry.get("preset", ""))]
        if own:
            missing = "" if len(own) == len(settings) else f" ({len(own)} of {len(settings)})"
            cells = " | ".join(COLUMNS[name](own) for name in shown)
            lines.append(f"| `{entry['name']}`{missing} | {entry.get('preset', '')} | {cells} |")
    counts = ", ".join(f"{group} {score(rows[:1], group)[3]}" for group in seen[0] if score(rows[:1], group))  # type: ignore[index]
    return [*lines, "", f"Images a concept and method: {counts}.", ""]


def write(rows: list[Record]) -> None:
    """Write the page and the chart."""
    if not rows:
        return
    profile = rows[0]["result"]["profile"]
    what = (
        f"Images: {profile['steps']} steps of {profile['solver']}, guidance {profile['guidance']:g}, bfloat16. "
        "Presets called `mini` were chosen once for all concepts on "
        f"{', '.join(SETUP['development'])}, which are in no table. Half of the other objects are kept (for a style, "
        "of the other styles too)."
    )
    lines = [INTRO.format(what=what), "![erased against kept](../assets/methods.svg)", ""]
    lines += section("One object at a time", rows, SETUP["objects"])
    lines += section("One style at a time", rows, SETUP["styles"])
    for setting in FIVE:
        lines += section(f"Five of the ten objects at once: {setting}", rows, [setting])
    pictures = sorted((DOCS / "assets" / "sheets").glob("*.png"))
    lines += ["## Pictures", "", "Church erased: the same seeds before and after.", ""] if pictures else []
    lines += [f"![{path.stem}](../assets/sheets/{path.name})\n" for path in pictures]
    with writing(DOCS / "methods" / "results.md") as path:
        path.write_text("\n".join(lines))
    chart(rows)
    readme(rows)


def readme(rows: list[Record]) -> None:
    """Put a short table between the markers of the README."""
    path = DOCS.parent / "README.md"
    begin, end = "<!-- methods: begin -->\n", "<!-- methods: end -->"
    head, rest = path.read_text().split(begin)
    lines = section("One object at a time", rows, SETUP["objects"], SHORT)[2:-2]
    with writing(path) as temporary:
        temporary.write_text(head + begin + "\n".join(lines) + end + rest.split(end)[1])


def chart(rows: list[Record]) -> None:
    """Draw erased against kept, one mark for each method, over objects."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    marks = cycle("osD^vP*Xhp<>8dHs1")
    for entry in SETUP["method"]:
        own = [r for r in rows if (r["method"], r["preset"]) == (entry["name"], entry.get("preset", ""))]
        own = [r for r in own if r["setting"] in SETUP["objects"]]
        x, y = (score(own, "target", gone=True), score(own, others(own))) if own else (None, None)
        if x and y:
            ends = [[[abs(v[0] - v[1])], [abs(v[2] - v[0])]] for v in (x, y)]
            label = f"{entry['name']} {entry.get('preset', '')}"
            axes.errorbar(x[0], y[0], xerr=ends[0], yerr=ends[1], fmt=next(marks), label=label, elinewidth=0.7)
    axes.set(xlabel="erased: ESR-1 of the concept", ylabel="kept: PSR-1 of unprotected objects")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with writing(DOCS / "assets" / "methods.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


def sheets(setting: str = "church") -> None:
    """Draw for each method: rows erased, keywords, two related, three unrelated; columns original and edited."""
    known = mini()[1]
    concept = known[setting]
    far = [c for c in known.values() if c.kind == "object" and c.name not in (setting, *concept.related)]
    rows = [concept.texts[0], hints(concept.keywords)[0], *(known[n].texts[0] for n in concept.related[:2])]
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
