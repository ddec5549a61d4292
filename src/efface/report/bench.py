"""The report of a bench: an overview of all edits, then a part for each concept."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from efface import __version__
from efface.errors import BadFile
from efface.evaluation.attack_record import AttackRecord, AttackRow
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.compare import check_comparable
from efface.evaluation.record import Record
from efface.evaluation.store import Store
from efface.evaluation.summary import Share
from efface.report import front, grid, html, tables
from efface.report.images import lines
from efface.report.page import CellImage, Column, Page, Strip, sections
from efface.report.tables import Table, percent
from efface.util.files import writing

SHOWN = 4  # images of a strip
SUMMED = ("target", "related", "unrelated")  # groups of the table of all edits
MADE = (("original", ""), ("edited", "before"), ("attacked", "after"))  # images of an attack's row, and their verdicts
OVERVIEW = """
<section>
<h2>All edits</h2>
{{ plot }}
<p class="soft">Click a heading to sort. Every share has its number of images and 95 % interval in the parts below.
Images of one concept share an edit and their prompts, so where several are pooled true intervals are wider.</p>
<div class="scroll">
<table class="list sortable">
<thead><tr>{% for cell in summary.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in summary.rows %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if failures %}
<h3>Not done: failed, or refused by the attack</h3>
<table class="list"><tbody>
{% for job, error in failures.items() %}<tr><td>{{ job }}</td><td>{{ error }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
</section>
"""
PART = """
<details class="part"{% if opened %} open{% endif %}>
<summary>{{ title }}</summary>
{% for section in sections %}
{{ section }}
{% endfor %}
</details>
"""


class Part(NamedTuple):
    """Hold one concept (or several erased at once) and the edits that erase it."""

    title: str
    columns: list[Column]


def report(folder: Folder, out: Path, store: Store | None = None, jobs: Sequence[Job] | None = None) -> Path:
    """Write the page about a bench's folder; images that the store no longer has are left out.

    jobs: whose results are shown; None for all that are there. Raises `BadFile` for a folder without results,
    `BadInput` for records that cannot be compared, `WriteError`.
    """
    found = store or Store.default()
    parts = _parts(folder, found, jobs)
    everything = [column for part in parts for column in part.columns]
    check_comparable([column.record for column in everything])
    first = everything[0].record
    page = Page(
        title=f"{_count(len(everything), 'edit')} of {first.model.name or 'a model'}",
        lead="Each edit answers the same prompts from the same noise as the model before it. A good one changes what "
        "it should erase and nothing else, and stands attacks.",
        columns=everything,
        facts=_facts(everything),
    )
    body = [
        html.fragment(
            OVERVIEW, plot=front.draw(_by_method(parts)), summary=summary(parts), failures=folder.failures(jobs)
        )
    ]
    for i, part in enumerate(parts):
        body.append(html.fragment(PART, title=part.title, opened=i == 0, sections=_sections(part, page, found)))
    text = html.page(page=page, sections=[Markup(one) for one in body], wide=True, sortable=True)
    with writing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def table_file(folder: Folder, out: Path) -> Path:
    """Write the table of all edits as Markdown, CSV or LaTeX, by the file's ending. Raises as `report`."""
    parts = _parts(folder, None)
    check_comparable([column.record for part in parts for column in part.columns])
    write = {".md": _markdown, ".csv": tables.to_csv, ".tex": tables.latex}[out.suffix.lower()]
    with writing(out) as temporary:
        temporary.write_text(write(summary(parts, whole=True)), encoding="utf-8")
    return out


def _markdown(table: Table) -> str:
    """Return a Markdown table in which names are no markup."""
    rows = [[*map(tables.literal, row[:2]), *row[2:]] for row in table.rows]
    return tables.markdown(Table([tables.literal(cell) for cell in table.header], rows))


def summary(parts: Sequence[Part], whole: bool = False) -> Table:
    """Tabulate every edit: what is left of the target, what stays, each attack, and what it took: seconds, peak MB.

    whole: whether each share has its 95 % interval and its number of images.
    """

    def cell(share: Share | None) -> str:
        if share is None:
            return ""
        low, high = share.interval
        return percent(share.value) + f" [{100 * low:.0f}, {100 * high:.0f}] (n = {share.n})" * whole

    attacks = sorted({strip.attack for part in parts for column in part.columns for strip in column.attacks})
    rows = []
    for part in parts:
        for column in part.columns:
            rates = {strip.attack: strip for strip in column.attacks}
            shares = [cell(_under(rates[name].record) if name in rates else None) for name in attacks]
            groups = column.record.summaries
            cells = [cell(groups[group].after if group in groups else None) for group in SUMMED]
            erasing = column.record.erasing
            seconds = f"{erasing.seconds:.1f}" if erasing else ""
            peak = f"{erasing.peak_mb:.0f}" if erasing and erasing.peak_mb else ""
            rows.append([part.title, column.name, *cells, *shares, seconds, peak])
    return Table(["concept", "method", "left", *SUMMED[1:], *attacks, "seconds", "peak MB"], rows)


def _under(record: AttackRecord) -> Share | None:
    return Share.of([row.after for row in record.rows]) if record.rows else None


def _parts(folder: Folder, store: Store | None, jobs: Sequence[Job] | None = None) -> list[Part]:
    """Return the concepts with their edits and the attacks on these; without a store, no images."""
    records = [one for one in folder.records(jobs) if isinstance(one, Record) and one.rows]
    if not records:
        raise BadFile(f"{folder.root} holds no results yet: run efface bench first")
    attacks: dict[str, list[AttackRecord]] = {}
    for one in sorted(folder.attacks(jobs), key=lambda one: (one.attack.name, one.attack.preset, one.concept)):
        attacks.setdefault(one.edit.id, []).append(one)
    found: dict[str, list[Column]] = {}
    for record in sorted(records, key=lambda one: (one.concept, one.edit.method, one.edit.preset, one.name)):
        known = found.setdefault(record.concept, [])
        name = _name(record.name, record.concepts, record.edit.method, record.edit.preset)
        if any(column.name == name for column in known):
            name += f" seed {record.edit.seed}" if record.edit.seed else f" {record.edit.id[:8]}"
        several = len(record.concepts) > 1
        strips = [_strip(one, store, several) for one in attacks.get(record.edit.id, ())]
        known.append(Column(name, "", record, strips))
    return [Part(concept, columns) for concept, columns in found.items()]


def _strip(record: AttackRecord, store: Store | None, several: bool = False) -> Strip:
    """Return an attack's row; several: whether its edit erases more than the concept that it brings back."""
    name = _name(record.name, ("on",), record.attack.name, record.attack.preset)
    name += f" on {record.concept}" * several
    shown = record.rows[:SHOWN]
    cells = [
        _cell(shown, key, seen, store) for key, seen in (("original", ""), ("edited", "before"), ("attacked", "after"))
    ]
    whole = all(len(cell) == len(shown) for cell in cells)
    return Strip(name, record.rates, record, *(cells if whole else ((), (), ())))


def _cell(rows: Sequence[AttackRow], key: str, verdict: str, store: Store | None) -> list[CellImage]:
    if store is None:
        return []
    found = []
    for row in rows:
        image = store.image(getattr(row, key)) if getattr(row, key) else None
        if image is not None:
            right = getattr(row, verdict) if verdict else None
            word = "" if right is None else "seen" if right else "not seen"
            found.append(CellImage(grid.data_uri(grid.to_image(image)), word, right))
    return found


def _name(job: str, stop: Sequence[str], name: str, preset: str) -> str:
    """Return a method or an attack with its preset and what was set besides, as the job that ran it says: "esd mini".

    stop: what comes next in the job's label. Records that no bench made have name and preset only.
    """
    said, found, _ = job.partition(f" {'+'.join(stop)}")
    return said.replace(":", " ", 1) if found else name + (f" {preset}" if preset else "")


def _sections(part: Part, page: Page, store: Store) -> list[Markup]:
    records = [column.record for column in part.columns if isinstance(column.record, Record)]
    kinds = {kind for record in records for kind in record.edit.kinds}
    own = Page(part.title, "", part.columns, lines(records, store), blurred="unsafe" in kinds)
    return [Markup(section.render(own)) for section in sections()]


def _by_method(parts: Sequence[Part]) -> dict[str, list[Column]]:
    found: dict[str, list[Column]] = {}
    for part in parts:
        for column in part.columns:
            found.setdefault(column.name, []).append(column)
    return found


def _facts(columns: Sequence[Column]) -> dict[str, str]:
    first = columns[0].record
    attacks = [strip.record for column in columns for strip in column.attacks]
    made = sorted({one.git for one in (*(column.record for column in columns), *attacks) if one.git})
    return {
        "judge": first.evaluator.evaluator,
        "sampler": f"{first.sampling.solver}, {first.sampling.steps} steps, guidance {first.sampling.guidance:g}",
        "images": f"{sum(len(c.record.rows) for c in columns if isinstance(c.record, Record)):,}",
        "commit": ", ".join(made) or "unknown",
        "efface": __version__,
    }


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


__all__ = ["report", "summary", "table_file"]
