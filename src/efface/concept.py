"""Concept: what to erase, the prompts that ask for it, and its anchor."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from efface.errors import BadFile, BadInput, unknown
from efface.util import untrusted
from efface.util.shipped import SHIPPED

Kind = Literal["object", "style", "identity", "unsafe"]
TEMPLATES: dict[str, str] = {
    "object": "a picture of a {}",
    "style": "art in the style of {}",
    "identity": "a photo of {}",
    "unsafe": "{}",
}


@dataclass(frozen=True)
class Concept:
    """Describe something that a model can generate by name.

    name: its name, the words that methods erase.
    prompts: ways to ask for it; when empty, `texts` gives the default of its kind.
    anchor: what to generate instead; when empty, the method chooses.
    kind: object, style, identity or unsafe.
    family: a group it belongs to ("weapon"), or "".
    related: names of related concepts, which should stay.
    keywords: words that imply it without naming it.

    >>> Concept("neon", kind="style", anchor="art").texts
    ('art in the style of neon',)
    """

    name: str
    prompts: tuple[str, ...] = ()
    anchor: str = ""
    kind: Kind = "object"
    family: str = ""
    related: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise BadInput("a concept needs a name, got an empty one")

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the prompts that ask for it: its own, or the default of its kind."""
        return self.prompts or (TEMPLATES[self.kind].format(self.name),)

    @classmethod
    def of(cls, value: "str | Concept") -> "Concept":
        """Return a concept as it is, or make one from its name."""
        return value if isinstance(value, Concept) else cls(value)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not at their default, as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Concept":
        """Read what `to_json` wrote; raises `UnknownName` for a field it does not know."""
        known = {f.name for f in fields(cls)}
        for key in value:
            if key not in known:
                raise unknown("field of a concept", str(key), known)
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        if not isinstance(values.get("name"), str):
            raise BadInput(f"a concept needs a name, got {dict(value)!r}")
        for key, found in values.items():
            many = isinstance(getattr(cls, key, ""), tuple)
            if not (
                isinstance(found, tuple) and all(isinstance(v, str) for v in found) if many else isinstance(found, str)
            ):
                raise BadInput(
                    f"{key} of the concept {values['name']!r} should be {'texts' if many else 'text'}, got {found!r}"
                )
        if values.get("kind", "object") not in TEMPLATES:
            raise unknown("kind of concept", values["kind"], TEMPLATES)
        return cls(**values)


def table_path(model: str) -> Path:
    """Return where a model's concept table is: in the package for a model that ships, else in the model's folder."""
    return SHIPPED[model].concepts if model in SHIPPED else Path(model) / "concepts.json"


def table(model: str) -> dict[str, Concept]:
    """Return a model's concept table by name, objects before styles; {} for a model without one.

    Raises `BadFile` when the table is not as expected.
    """
    path = table_path(model)
    return dict(_read(path, path.stat().st_mtime_ns)) if path.is_file() else {}


@cache
def _read(path: Path, _modified: int) -> dict[str, Concept]:
    try:
        groups = untrusted.read(path)
        items = [item for group in ("objects", "styles") for item in groups.get(group, [])]
        known = {f.name for f in fields(Concept)}  # the table has further keys (labels, held-out words)
        found = [Concept.from_json({key: item[key] for key in item if key in known}) for item in items]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadFile(f"{path} is not a concept table: {error}") from error
    return {concept.name: concept for concept in found}


def find(name: str, model: str) -> Concept:
    """Return a concept of a model's table, or a plain one when the model has no table.

    Raises `UnknownName` (with the nearest match) when there is a table that lacks the name.
    """
    known = table(model)
    if known and name not in known:
        raise unknown("concept", name, known)
    return known.get(name) or Concept(name)


__all__ = ["TEMPLATES", "Concept", "Kind", "find", "table", "table_path"]
