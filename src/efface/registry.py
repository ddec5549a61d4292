"""Registry: find methods, attacks, metrics, judges, families and formats by their file names.

Listing reads file names and docstrings only; torch is imported when a class is asked for.
"""

import ast
import inspect
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from efface.concept import Concept
from efface.errors import BadInput, unknown
from efface.util import ranges

KINDS = ("methods", "attacks", "metrics", "judges", "families", "exports")
ROOT = Path(__file__).parent
PLAIN = (float, int, bool, str)


@dataclass(frozen=True)
class Field:
    """Describe one hyper-parameter, read from a class or from its source (`efface.cli.fields`).

    type: float, int, bool or str, of one element when `many`; object for anything else. default: None where there is
    none. choices: the allowed values, when they are listed (`Literal`). range: the allowed numbers, such as "[0, 1)".
    """

    name: str
    type: type
    default: Any = None
    help: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False
    range: str = ""

    @property
    def flag(self) -> str:
        """Return the name of its flag on the command line."""
        return "--" + self.name.replace("_", "-")


def _folder(kind: str) -> Path:
    if kind not in KINDS:
        raise unknown("kind of plug-in", kind, KINDS)
    return ROOT / "models" / kind if kind == "families" else ROOT / kind


def names(kind: str) -> list[str]:
    """Return the sorted names of one kind, such as "methods"; imports nothing."""
    return sorted(path.stem for path in _folder(kind).glob("*.py") if not path.stem.startswith("_"))


def summary(kind: str, name: str) -> str:
    """Return the first line of a module's docstring, read without importing it."""
    if name not in names(kind):
        raise unknown(kind.removesuffix("s"), name, names(kind))
    tree = ast.parse((_folder(kind) / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def get(kind: str, name: str) -> type[Any]:
    """Return the class that a file registers: its one public concrete dataclass of that kind.

    Raises `UnknownName` with the nearest match.
    """
    if not isinstance(name, str) or name not in names(kind):
        raise unknown(kind.removesuffix("s"), str(name), names(kind))
    module = import_module(".".join(("efface", *_folder(kind).relative_to(ROOT).parts, name)))
    found = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not key.startswith("_")
        and getattr(value, "KIND", None) == kind
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public class with KIND = {kind!r}, has {found}")
    return found[0]


def name_of(cls: type[Any]) -> str:
    """Return the registered name of a class: the name of its file."""
    return cls.__module__.rpartition(".")[2]


def make(kind: str, name: str, **values: Any) -> Any:
    """Build a registered class from field values; raises `UnknownName` for a name or field it does not know."""
    return build(get(kind, name), **values)


def build(cls: type[Any], **values: Any) -> Any:
    """Build an instance of a registered class; lists become tuples. Raises `UnknownName` for an unknown field."""
    known = {f.name for f in fields(cls) if f.init}
    for key in values:
        if key not in known:
            raise unknown(f"field of {name_of(cls)}", key, known)
    hints = get_type_hints(cls)
    return cls(**{key: _coerce(value, hints[key], key) for key, value in values.items()})


def _coerce(value: Any, hint: Any, name: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{name} must be a finite number, got {ranges.short(value)}") from None
    if hint in PLAIN and (type(value) is not hint):
        raise BadInput(f"{name} should be {hint.__name__}, got {ranges.short(value)}")
    return value


@cache
def describe(cls: type[Any]) -> tuple[Field, ...]:
    """Return every field of a registered class that its constructor takes."""
    hints, texts, spans = get_type_hints(cls), _helps(cls), ranges_of(cls)
    return tuple(_field(f, hints[f.name], texts.get(f.name, ""), spans.get(f.name, "")) for f in fields(cls) if f.init)


@cache
def ranges_of(cls: type[Any]) -> dict[str, str]:
    """Return the ranges that a class and its bases declare, by the name of a field or of a product of fields."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        found |= parent.__dict__.get("RANGES", {})
    return found


def check_fields(value: Any) -> None:
    """Check the type, choices and range of every field. Raises `UnknownName` or `BadInput`."""
    cls = type(value)
    for field in describe(cls):
        check_field(field, getattr(value, field.name), field.name)
    check_products({f.name: getattr(value, f.name) for f in describe(cls)}, ranges_of(cls))


def check_products(values: Mapping[str, Any], spans: Mapping[str, str]) -> None:
    """Check the products of fields that have a range. Raises `BadInput`."""
    for names, span in spans.items():
        factors = [one for name in names.split(" * ") if isinstance(one := values.get(name), int | float)]
        if len(factors) > 1:
            ranges.check(math.prod(factors), span, names)


def check_field(field: Field, given: Any, called: str) -> None:
    """Check that a value, or each of several, has a field's type, choices and range.

    Raises `UnknownName` or `BadInput`, which begin with what the field is `called`.
    """
    if field.optional and given is None:
        return
    if field.many and not isinstance(given, tuple | list):
        raise BadInput(f"{called} should be several values, got {ranges.short(given)}")
    for one in given if field.many else (given,):
        if field.choices:
            if one not in field.choices:
                raise unknown(f"value of {called}", str(one)[:60], field.choices)
        elif not _is(one, field.type):
            raise BadInput(f"{called} should be {field.type.__name__}, got {ranges.short(one)}")
        elif field.type in (int, float):
            ranges.check(one, field.range, called)


def _is(value: Any, kind: type) -> bool:
    """Return whether a value has a field's type; a whole number is a float, a truth value is no number."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def _field(field: Any, hint: Any, text: str, span: str) -> Field:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    default = None if default is MISSING else default
    optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
    if optional:
        (hint, *_) = (one for one in get_args(hint) if one is not NoneType)
    many = get_origin(hint) in (tuple, list, Sequence)
    hint = get_args(hint)[0] if many else hint
    choices = tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()
    kind = str if choices else hint if hint in PLAIN else object
    return Field(field.name, kind, default, text, choices, many, optional, span)


def _helps(cls: type[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        found |= helps(parent.__dict__.get("__doc__") or "", getattr(parent, "__dataclass_fields__", ()))
    return found


def helps(docstring: str, known: Collection[str]) -> dict[str, str]:
    """Return the "name: text" entries of a docstring for known names; a text may continue on lines indented deeper."""
    found: dict[str, str] = {}
    current, depth = "", 0
    for line in inspect.cleandoc(docstring).splitlines():
        indent = len(line) - len(line.lstrip())
        match = re.match(r"\s*(\w+): +(.*)$", line)
        if match and match[1] in known:
            current, depth = match[1], indent
            found[current] = match[2].strip()
        elif current and line.strip() and indent > depth:
            found[current] += " " + line.strip()
        else:
            current = ""
    return found


def to_json(value: Any) -> Any:
    """Turn an instance of a registered class into plain JSON values: {"kind", "name", "fields"}."""
    if isinstance(value, Concept):
        return {"concept": value.to_json()}
    if is_dataclass(value) and not isinstance(value, type):
        kind = getattr(value, "KIND", None)
        if kind not in KINDS:
            raise BadInput(f"{type(value).__name__} is not a registered class")
        plain = {f.name: to_json(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"kind": kind, "name": name_of(type(value)), "fields": plain}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise BadInput(f"{type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """Read what `to_json` wrote; it can name registered classes only. Raises `UnknownName` or `BadInput`."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if set(value) == {"concept"}:
        return Concept.from_json(value["concept"])
    if set(value) == {"kind", "name", "fields"} and isinstance(value["fields"], dict):
        kind, name = str(value["kind"]), str(value["name"])
        return make(kind, name, **{str(key): from_json(item) for key, item in value["fields"].items()})
    return {str(key): from_json(item) for key, item in value.items()}
