"""Concept: what to erase, the prompts that ask for it, and its anchor."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from efface.errors import BadFile, BadInput, unknown
from efface.util import untrusted
from efface.util.ranges import short
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
        _check_texts(vars(self))
        if not self.name.strip():
            raise BadInput("a concept needs a name, got an empty one")

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the prompts that ask for it: its own, or the default of its kind."""
        return self.prompts or (self.fill(TEMPLATES[self.kind]),)

    def fill(self, template: str) -> str:
        """Return a template with the name in place of its first {}; "a {}" becomes "an umbrella", or a bare identity.

        "the {}" likewise names an identity without the article.

        >>> Concept("umbrella").fill("a photo of a {}"), Concept("Ann", kind="identity").fill("a photo of a {}")
        ('a photo of an umbrella', 'a photo of Ann')
        """
        articles = {"": "", "a ": "an " if self.name[:1].casefold() in tuple("aeiou") else "a ", "the ": "the "}
        bare = self.kind == "identity"
        fill = lambda found: ("" if bare else articles[found[1] or ""]) + self.name  # noqa: E731
        return re.sub(r"(?<!\w)(a |the )?\{\}", fill, template, count=1)

    @classmethod
    def of(cls, value: "str | Concept") -> "Concept":
        """Return a concept as it is, or make one from its name. Raises `BadInput` for anything else."""
        if not isinstance(value, str | Concept):
            raise BadInput(f"a concept is a name or a Concept, got {short(value)}")
        return value if isinstance(value, Concept) else cls(value)

    @classmethod
    def all_of(
        cls,
        values: "str | Concept | Iterable[str | Concept]",
        what: str = "erase",
        look_up: "Callable[[str], Concept] | None" = None,
    ) -> "tuple[Concept, ...]":
        """Return the concepts of one or several names or concepts, each once.

        look_up: makes a concept from a name. Raises `BadInput`, which begins with `what`, for anything else.
        """
        given: Any = (values,) if isinstance(values, str | Concept) else values
        if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
            raise BadInput(f"{what} takes a concept, a name, or several of them, got {short(given)}")
        found = (look_up(one) if look_up and isinstance(one, str) else cls.of(one) for one in given)
        return tuple(dict.fromkeys(found))

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
        _check_texts(values)
        return cls(**values)


def _check_texts(values: Mapping[str, Any]) -> None:
    """Check that every field is text, or texts, and the kind a known one. Raises `BadInput` or `UnknownName`."""
    if not isinstance(values.get("name"), str):
        raise BadInput(f"a concept needs a name, got {short(values.get('name'))}")
    for key, found in values.items():
        many = isinstance(getattr(Concept, key, ""), tuple)
        parts = found if many and isinstance(found, tuple | list) else (found,)
        if (many and parts is not found) or not all(isinstance(part, str) for part in parts):
            named = f"{key} of the concept {short(values['name'])}"
            raise BadInput(f"{named} should be {'texts' if many else 'text'}, got {short(found)}")
    if values.get("kind", "object") not in TEMPLATES:
        raise unknown("kind of concept", values["kind"], TEMPLATES)


def table_path(model: str) -> Path:
    """Return where a model's concept table is: in the package for a model that ships, else in the model's folder.

    That of a single file is beside it, "sd14.concepts.json" for "sd14.safetensors".
    """
    if model in SHIPPED:
        return SHIPPED[model].concepts
    path = Path(model)
    return path.with_suffix(".concepts.json") if path.is_file() else path / "concepts.json"


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
