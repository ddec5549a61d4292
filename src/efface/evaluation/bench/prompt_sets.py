"""Prompts of a bench that are given in its file: templates of names, or rows of the user's own csv.

[[prompts]]                          # images judged by name
group = "target"                     # a group of `efface evaluate`, or a name of your own
template = "image of {}"             # or several
of = "erased"                        # or "others": the `names` that are not erased; or a list of names
seeds = 500

[[prompts]]                          # captions, each with its own seed and guidance
group = "unrelated"
csv = "@coco"                        # a file, or one that the command gives: --data coco=FILE
rows = 1000                          # the first ones only
label = ""                           # the name that the judge should give: none
column = "artist"                    # only rows with, in this column, a name that is `of` = "erased", or "others"
"""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from efface.concept import Concept
from efface.errors import BadInput, EffaceError, unknown
from efface.evaluation.bench.reading import Reading
from efface.evaluation.prompts import GROUPS, Case
from efface.util import untrusted
from efface.util.ranges import short

KEYS = ("group", "template", "of", "names", "seeds", "label", "kind", "csv", "rows", "column")
COLUMNS = {  # of csv files: the first that is there
    "prompt": ("prompt", "caption", "text"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance"),
}
MOST_ROWS, MOST_SEEDS = 100_000, 10_000


class Row(NamedTuple):
    """Hold a prompt of a csv, its seed and guidance (None for the bench's), and the name in a column, "" for none."""

    prompt: str
    seed: int
    guidance: float | None = None
    name: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Hold prompts of one group.

    templates: with {} for a name. of: "erased", "others" or "" for `names`. names: to choose from. label: what the
    judge should see: None for the name in the template, "" for nothing. rows: prompts of a csv.
    """

    group: str
    templates: tuple[str, ...] = ()
    of: str = ""
    names: tuple[str, ...] = ()
    seeds: int = 1
    label: str | None = None
    kind: str = "object"
    rows: tuple[Row, ...] = ()

    def cases(self, erased: Sequence[Concept]) -> list[Case]:
        """Return the prompts for what is erased."""
        gone = [concept.name for concept in erased]
        judged = "style" if self.kind == "style" else "object"
        if self.rows:
            lower = {name.lower() for name in gone}
            wanted = [r for r in self.rows if not r.name or (r.name.lower() in lower) == (self.of == "erased")]
            return [
                Case(
                    (self.group,), r.name or gone[0], r.prompt, judged, self.label or "", self._seeds_of(r), r.guidance
                )
                for r in wanted
            ]
        chosen = gone if self.of == "erased" else [name for name in self.names if self.of == "" or name not in gone]
        seeds = tuple(range(self.seeds))
        return [
            Case((self.group,), name, text.format(name), judged, name if self.label is None else self.label, seeds)
            for name in chosen
            for text in self.templates
        ]

    def _seeds_of(self, row: Row) -> tuple[int, ...]:
        """Return a row's seed and those behind it, where each prompt is asked several times."""
        return tuple(range(row.seed, row.seed + self.seeds))


def read_sets(at: Reading, value: Any, data: Mapping[str, Path], folder: Path) -> tuple[PromptSet, ...]:
    """Read the prompts of a bench. data: files by the name after "@". folder: where other files are looked for."""
    found = []
    for i, one in enumerate(at.list_of("prompts", value)):
        hint = "prompts" if not isinstance(one, dict) else str(one.get("group", "prompts"))
        if not isinstance(one, dict):
            at.add(f"one of prompts is a table with a group, got {short(one)}", "prompts")
            continue
        wrong = len(at.wrong)
        for key in one:
            if key not in KEYS:
                at.add(unknown("key of prompts", str(key), KEYS), "prompts", str(key))
        made = _from_csv(at, one, data, folder) if "csv" in one else _from_templates(at, one, i)
        if made is not None and len(at.wrong) == wrong:
            found.append(_labelled(at, made, one, hint))
    return tuple(found)


def _labelled(at: Reading, made: PromptSet, one: Mapping[str, Any], hint: str) -> PromptSet:
    group, label, kind = one.get("group", ""), one.get("label", made.label), one.get("kind", "object")
    if not isinstance(group, str) or not group.strip():
        at.add(f"prompts need a group, such as {', '.join(g.name for g in GROUPS[:3])}, got {short(group)}", hint)
    if label is not None and not isinstance(label, str):
        at.add(f"the label of prompts is a name, or empty for none, got {short(label)}", hint)
    if kind not in ("object", "style"):
        at.add(unknown("kind of prompts", str(kind), ("object", "style")), hint)
    return replace(made, group=str(group), label=label if isinstance(label, str) else None, kind=str(kind))


def _from_templates(at: Reading, one: Mapping[str, Any], number: int) -> PromptSet | None:
    said = f"prompts {number + 1}"
    texts: Any = one.get("template")
    texts = (texts,) if isinstance(texts, str) else tuple(texts) if untrusted.is_texts(texts) else ()
    if not texts or not all(_fits(text) for text in texts):
        at.add(f"{said}: a template is a text with one {{}} for the name, got {short(one.get('template'))}", "template")
    of, names = one.get("of", "erased"), one.get("names", ())
    if untrusted.is_texts(of):
        of, names = "", of
    if of not in ("erased", "others", ""):
        at.add(f'{said}: of is "erased", "others" or a list of names, got {short(of)}', "of")
    if not untrusted.is_texts(names) or (of != "erased" and not names):
        at.add(f"{said}: names is a list of names to choose from, got {short(names)}", "names")
    seeds = one.get("seeds", 1)
    if not untrusted.is_count(seeds, 1, MOST_SEEDS):
        at.add(f"{said}: seeds is a number of seeds from 1 to {MOST_SEEDS}, got {short(seeds)}", "seeds")
        seeds = 1
    if not untrusted.is_texts(names):
        return None
    return PromptSet("", texts, str(of), tuple(names), seeds)


def _fits(text: str) -> bool:
    try:
        return text.format("a name") != text and text.count("{}") == 1
    except (LookupError, ValueError):
        return False


def _from_csv(at: Reading, one: Mapping[str, Any], data: Mapping[str, Path], folder: Path) -> PromptSet | None:
    given, most, column = one["csv"], one.get("rows", MOST_ROWS), one.get("column", "")
    of, seeds, wrong = one.get("of", "erased"), one.get("seeds", 1), len(at.wrong)
    if not isinstance(given, str) or not given:
        at.add(f"csv is the name of a file, got {short(given)}", "csv")
    if not untrusted.is_count(most, 1, MOST_ROWS):
        at.add(f"rows is a number of rows from 1 to {MOST_ROWS}, got {short(most)}", "csv")
    if not untrusted.is_count(seeds, 1, MOST_SEEDS):
        at.add(f"seeds is a number of seeds from 1 to {MOST_SEEDS}, got {short(seeds)}", "csv")
    if not isinstance(column, str) or of not in ("erased", "others"):
        at.add(f'column is a name, and of then "erased" or "others", got {short(column)} and {short(of)}', "csv")
    if len(at.wrong) > wrong:
        return None
    path = data.get(given[1:]) if given.startswith("@") else folder / given
    if path is None:
        at.add(f"needs a file of yours: give it as --data {given[1:]}=FILE.csv", given)
        return None
    rows = at.attempt(lambda: read_csv(path, most, column), given)
    return None if rows is None else PromptSet("", of=of, rows=rows, label="", seeds=seeds)


def read_csv(path: Path, most: int = MOST_ROWS, column: str = "") -> tuple[Row, ...]:
    """Return the first rows of a csv with a header; a row without a seed has its number, from 0.

    column: of names. Columns are those of I2P's and COCO-30k's files, see COLUMNS. Raises `BadFile` for a file that
    cannot be read, `BadInput` for one without these columns, and for a row whose seed or guidance is no number.
    """
    lines = csv.DictReader(io.StringIO(untrusted.read_text(path), newline=""))
    try:
        fields = list(lines.fieldnames or ())
        of = {key: next((name for name in known if name in fields), "") for key, known in COLUMNS.items()}
        if not of["prompt"]:
            raise BadInput(f"no column of prompts (one of {', '.join(COLUMNS['prompt'])})")
        if column and column not in fields:
            raise unknown("column", column, fields)
        found = [_row(row, i, of, column) for i, row in enumerate(itertools.islice(lines, most))]
    except csv.Error as error:
        raise BadInput(f"{path} is no csv: {error}") from error
    except EffaceError as error:
        raise BadInput(f"{path}: {error}") from error
    if not found:
        raise BadInput(f"{path} has no rows")
    return tuple(found)


def _row(row: Mapping[str, str | None], number: int, of: Mapping[str, str], column: str) -> Row:
    seed, guidance = (row.get(of[key]) if of[key] else None for key in ("seed", "guidance"))
    name = (row.get(column) or "").strip() if column else ""
    return Row(_text(row[of["prompt"]], number), _seed(seed, number), _guidance(guidance, number), name)


def _text(text: str | None, row: int) -> str:
    if text is None:
        raise BadInput(f"row {row + 1} has no prompt")
    return text


def _seed(text: str | None, row: int) -> int:
    if not text:
        return row
    if not text.strip().isdigit() or not untrusted.is_count(int(text.strip()[:40]), 0, 2**63 - 1):
        raise BadInput(f"the seed of row {row + 1} is a whole number from 0 to 2^63 - 1, got {short(text)}")
    return int(text)


def _guidance(text: str | None, row: int) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1000 <= value <= 1000:
        raise BadInput(f"the guidance of row {row + 1} is a number from -1000 to 1000, got {short(text)}")
    return value


__all__ = ["PromptSet", "Row", "read_csv", "read_sets"]
