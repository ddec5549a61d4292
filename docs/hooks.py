"""Build pages from the source tree, so that no list of methods, attacks, metrics or fields is written by hand."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from efface import registry
from efface.cli.fields import Field, Sheet, sheet
from efface.concept import Concept, table
from efface.util import ranges

ROOT = Path(__file__).parent.parent
CARD = ROOT / "src" / "efface" / "mini" / "MODEL_CARD.md"
ATTACKS = """# Attacks

An attack looks for queries that bring an erased concept back. Every attack is one file in `src/efface/attacks/`; this
page is read from those files. A field is a flag of `efface attack NAME EDIT`, and an argument of the class:

```python
import efface
from efface.attack import Target
from efface.attacks.gradient import Gradient
from efface.judge import asked_of

model = efface.load("mini")
edit = efface.erase(model, "church", method="uce")
with edit.applied(model) as edited:
    target = Target(edited, asked_of("mini"), original=model)
    finding = Gradient()(target, "church", efface.Query("a picture of a church"))
finding.queries[0]  # the most successful one; its prompt is in its context
```

The scores of a finding were maximised, so they are too high: generate fresh images of its queries before you quote
anything. [Digits](digits.md) shows what the attacks find where every prompt of a grid can be tried.
"""


def on_config(config: Any) -> Any:
    """Put the notes in docs/methods/ under the methods page."""
    notes = sorted((ROOT / "docs" / "methods").glob("*.md"))
    for entry in config.nav:
        if "Methods" in entry and notes:
            entry["Methods"] = [{"All methods": "methods.md"}, *(f"methods/{note.name}" for note in notes)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "methods.md": methods(),
        "attacks.md": attacks(),
        "concepts.md": concepts(),
        "card.md": card(),
        "record.md": records(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Put the groups of prompts and the metrics into the page about measuring; give wide tables room."""
    if page.file.src_uri == "methods/results.md":
        page.meta["hide"] = ["toc"]
        return re.sub(r"\[(\d+), (\d+)\]", "[\\1,\u00a0\\2]", text)
    return text.replace("<!-- groups -->", groups()).replace("<!-- metrics -->", metrics())


def groups() -> str:
    """Write the groups of prompts."""
    from efface.evaluation.prompts import GROUPS

    lines = ["| group | prompts | a good method scores |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{group.name}` | {group.prompts} | {group.better} |" for group in GROUPS)])


def metrics() -> str:
    """Write one line per file of metrics/."""
    from efface.metric import SetMetric

    lines = ["| metric | what | range | better | of | usual |", "|---|---|---|---|---|---|"]
    for name in registry.names("metrics"):
        cls = registry.get("metrics", name)
        low, high = cls.RANGE
        what = (cls.__doc__ or "").partition("\n")[0]
        of = "image" if cls.PER_IMAGE else "set" if issubclass(cls, SetMetric) else "edit"
        span = f"{low:g} to {high:g}".replace("inf", "∞").replace("-", "−")
        lines.append(f"| `{name}` | {what} | {span} | {cls.BETTER} | {of} | {'yes' if cls.USUAL else 'by name'} |")
    return "\n".join(lines)


def records() -> str:
    """Write the fields of a record, from its JSON schema, and the schema itself."""
    from efface.evaluation.record import Record, Scored

    schema = Record.model_json_schema()
    known = {name: part for name, part in schema["$defs"].items() if "properties" in part}
    whole = {**schema, "description": f"{schema['description']}\n{(Scored.__doc__ or '').partition(chr(10))[2]}"}
    parts = {"Record": whole, "Row": known.pop("Row"), "Asked": known.pop("Asked"), **known}
    head = (
        "# Records\n\n`efface evaluate --json FILE`, `efface demo` and `benchmarks/methods.py` write records: one JSON "
        "object, alone in a `.json` file or one a line in a `.jsonl` file. It has one row per image; every share, "
        "interval, sentence, table and page is computed from the rows. `efface.evaluation.record.read` reads both "
        "and refuses anything else.\n\nThe image of a row is in the store under its key: "
        "`efface.evaluation.store.Store.default().image(row.image)`.\n"
    )
    tables = [table_of(name, part) for name, part in parts.items()]
    code = json.dumps(schema, indent=1)
    return "\n".join([head, *tables, "## JSON schema\n", "```json", code, "```", ""])


def table_of(name: str, part: dict[str, Any]) -> str:
    """Write one object of a schema as a table of its fields."""
    about, meanings = meanings_of(part.get("description") or "", list(part["properties"]))
    lines = [f"## {name}\n", about + "\n", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field_name, value in part["properties"].items():
        given = "" if field_name in part.get("required", ()) else f"`{json.dumps(value.get('default', {}))}`"
        lines.append(f"| `{field_name}` | {type_of(value)} | {given} | {cell(meanings.get(field_name, ''))} |")
    return "\n".join([*lines, ""])


def meanings_of(text: str, fields: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split a docstring into what it says of the whole and, after "name: " or "name, name: ", of each field."""
    word = "|".join(map(re.escape, fields))
    plain = " ".join(text.split())
    about, *rest = re.split(rf"(?<![\w.])((?:{word})(?:, (?:{word}))*): ", plain)
    found = {}
    for names, meaning in zip(rest[::2], rest[1::2], strict=True):
        found |= dict.fromkeys(names.split(", "), meaning.strip(" .,"))
    return about.strip(), found


def type_of(value: dict[str, Any]) -> str:
    """Write a type of a JSON schema in a few words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return "any JSON value" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(map(type_of, value["anyOf"]))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{json.dumps(item)}`" for item in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {many(type_of(value.get('items', {})))}"
    if value.get("type") == "object":
        return f"{many(type_of(value.get('additionalProperties', {})))} by name"
    name = str(value.get("type", "any JSON value"))
    return {"integer": "whole number", "null": "nothing"}.get(name, name)


def many(words: str) -> str:
    """Return the plural of a type's name; a link stays as it is."""
    return f"{words}s" if words[-1].isalpha() else words


def methods() -> str:
    """Write one section per file of methods/: what it does, its hyper-parameters, its presets."""
    sheets = [sheet("methods", name) for name in registry.names("methods")]
    head = (
        "# Methods\n\nEvery method is one file in `src/efface/methods/`; this page is read from those files.\n"
        "A field is a flag of `efface erase METHOD` and an argument of `efface.erase(model, concept, method=METHOD)`.\n"
    )
    return "\n".join([head, *map(section, sheets)])


def attacks() -> str:
    """Write one section per file of attacks/."""
    sheets = [sheet("attacks", name) for name in registry.names("attacks")]
    return "\n".join([ATTACKS, *(section(one, "attacks") for one in sheets)])


def section(method: Sheet, kind: str = "methods") -> str:
    lines = [f"## {method.name}\n", method.summary + "\n", source(kind, method.name) + "\n"]
    if method.fields:
        rows = [row(field, field.flag) for field in method.fields]
        lines += ["| field | default | meaning |", "|---|---|---|", *rows, ""]
    if method.presets:
        lines += ["| preset | fields it sets |", "|---|---|"]
        lines += [f"| `{name}` | {settings(values)} |" for name, values in method.presets.items()] + [""]
    return "\n".join(lines)


def source(kind: str, name: str) -> str:
    """Return the docstring of a file, which names the paper, with links."""
    path = ROOT / "src" / "efface" / kind / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.sub(r"https://[^\s,;)]+[^\s,;).]", r"<\g<0>>", cell(text))


def row(field: Field, name: str) -> str:
    told = all(word in field.help for word in field.choices)
    words = "" if told else f"; one of {', '.join(field.choices)}"
    span = f" ({ranges.words(field.range)})" if field.range else ""
    return f"| `{name}` | {default(field.default)} | {cell(field.help + words + span)} |"


def default(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "<br>".join(f"`{item!r}`" for item in value) or "none"
    return "" if value is None else f"`{value!r}`"


def settings(values: dict[str, Any]) -> str:
    return ", ".join(f"`{name} = {value!r}`" for name, value in values.items()) or "none: the defaults"


def concepts() -> str:
    """Write mini's concept table."""
    known = table("mini").values()
    head = (
        "# What mini can generate\n\nThe table that `efface list concepts` prints. *Related* concepts are near to one "
        "another: when one is erased, the others should stay. *Keywords* make the implicit prompts, which ask for a "
        "concept without its name.\n"
    )
    parts = [head]
    for kind in dict.fromkeys(concept.kind for concept in known):
        members = [concept for concept in known if concept.kind == kind]
        parts += [f"## {len(members)} {kind}s\n", "| name | family | related | keywords |", "|---|---|---|---|"]
        parts += [line(concept) for concept in members] + [""]
    return "\n".join(parts)


def line(concept: Concept) -> str:
    return f"| {concept.name} | {concept.family} | {', '.join(concept.related)} | {', '.join(concept.keywords)} |"


def card() -> str:
    """Return mini's model card, which ships beside its weights."""
    return CARD.read_text(encoding="utf-8") if CARD.is_file() else "# mini\n\nThe model card comes with the weights.\n"


def cell(text: str) -> str:
    for sign in "|*_":
        text = text.replace(sign, "\\" + sign)
    return text
