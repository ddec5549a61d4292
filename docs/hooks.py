"""Build pages from the source tree, so that no list of methods or concepts is kept by hand. Imports no torch."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from efface import registry
from efface.cli.fields import Field, Sheet, sheet
from efface.concept import Concept, table

ROOT = Path(__file__).parent.parent
CARD = ROOT / "src" / "efface" / "mini" / "MODEL_CARD.md"


def on_config(config: Any) -> Any:
    """Put the notes in docs/methods/ under the methods page."""
    notes = sorted((ROOT / "docs" / "methods").glob("*.md"))
    for entry in config.nav:
        if "Methods" in entry and notes:
            entry["Methods"] = [{"All methods": "methods.md"}, *(f"methods/{note.name}" for note in notes)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"methods.md": methods(), "concepts.md": concepts(), "mini.md": card()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def methods() -> str:
    """Write one section per file of methods/: what it does, its hyper-parameters, its presets."""
    sheets = [sheet("methods", name) for name in registry.names("methods")]
    head = (
        "# Methods\n\nEvery method is one file in `src/efface/methods/`; this page is read from those files.\n"
        "A field is a flag of `efface erase METHOD` and an argument of `efface.erase(model, concept, method=METHOD)`.\n"
    )
    return "\n".join([head, *map(section, sheets)])


def section(method: Sheet) -> str:
    lines = [f"## {method.name}\n", method.summary + "\n", method.source + "\n"]
    if method.fields:
        lines += ["| field | default | meaning |", "|---|---|---|", *map(row, method.fields), ""]
    if method.presets:
        lines += ["| preset | fields it sets |", "|---|---|"]
        lines += [f"| `{name}` | {settings(values)} |" for name, values in method.presets.items()] + [""]
    return "\n".join(lines)


def row(field: Field) -> str:
    told = all(word in field.help for word in field.choices)
    words = "" if told else f"; one of {', '.join(field.choices)}"
    return f"| `{field.flag}` | {default(field.default)} | {cell(field.help + words)} |"


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
        "# What mini can draw\n\nThe table that `efface list concepts` prints. *Related* concepts should survive when "
        "their neighbour is erased; *keywords* make the prompts that only hint at a concept.\n"
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
