"""Protocols: the experiments of papers as data. Each .toml in `protocols/` is one; the file name is the registration.

title, paper, table and about say what it is. [full] is a bench at the paper's size, for any model; [mini] is its
counterpart on the embedded model. Both have the keys of a bench file, but for `model`.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.errors import BadInput, unknown
from efface.evaluation.bench.file import Bench, collect, load
from efface.evaluation.bench.reading import Reading
from efface.util import untrusted
from efface.util.ranges import short

FOLDER = Path(__file__).parents[1] / "protocols"
PREFIX = "protocol:"
TEXTS = ("title", "paper", "table", "about")
SIZES = ("full", "mini")


@dataclass(frozen=True)
class Protocol:
    """Hold what a protocol says of itself. sizes: of "full" and "mini". data: names of the user's files."""

    name: str
    title: str
    paper: str
    table: str
    about: str
    sizes: tuple[str, ...]
    data: tuple[str, ...] = ()


def names() -> list[str]:
    """Return the sorted names of all protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Path:
    """Return the file of a protocol. Raises `UnknownName` with the nearest match."""
    if name not in names():
        raise unknown("protocol", name, names())
    return FOLDER / f"{name}.toml"


def describe(name: str) -> Protocol:
    """Return what a protocol says of itself. Raises as `read`."""
    path = find(name)
    text = untrusted.read_text(path)
    given = load(text, path)
    at = Reading(text, str(path))
    _check_head(at, given)
    at.finish()
    data = sorted({word.strip('@",]}') for line in text.splitlines() for word in line.split() if word.startswith('"@')})
    title, paper, table, about = (given.get(key, "").strip() for key in TEXTS)
    return Protocol(name, title, paper, table, about, _sizes(given), tuple(data))


def is_protocol(path: Path) -> bool:
    """Return whether a TOML file is a protocol rather than a bench: whether it has a size. Raises `BadFile`."""
    try:
        given = tomllib.loads(untrusted.read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return any(size in given for size in SIZES)


def read(
    path: Path, model: str = "mini", data: Mapping[str, Path] | None = None,
    needed: tuple[str, ...] = ("concepts", "methods"),
) -> Bench:  # fmt: skip
    """Return a protocol's bench for a model: [mini] for mini, [full] for any other.

    data: files of the user that it asks for, by name. needed: keys that the section must have. Raises `BadFile` for no
    TOML, `BadInput` with everything that is wrong with its head and that section, and the lines.
    """
    text = untrusted.read_text(path)
    given, at = load(text, path), Reading(text, str(path))
    _check_head(at, given)
    size = "mini" if model == "mini" else "full"
    section = given.get(size)
    if isinstance(section, dict):
        at.begin = next((i + 1 for i, line in enumerate(at.lines) if line.strip().startswith(f"[{size}]")), 0)
        if "model" in section:
            at.add("a protocol is for any model: give it as --model", "model")
            section = {key: value for key, value in section.items() if key != "model"}
        bench = collect(at, section, model, data or {}, path.parent, needed)
        at.finish()
        return bench
    if _sizes(given):
        at.add(f"has settings for {' and '.join(_sizes(given))} only, not for {model}: it needs [{size}]")
    at.finish()
    raise AssertionError("a section that is no table is noted by _check_head")


def _check_head(at: Reading, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in (*TEXTS, *SIZES):
            at.add(unknown("key of a protocol", str(key), (*TEXTS, *SIZES)), str(key))
        elif key in TEXTS and not (isinstance(value, str) and value.strip()):
            at.add(f"{key} of a protocol is a text, got {short(value)}", key)
        elif key in SIZES and not isinstance(value, dict):
            at.add(f"{key} of a protocol is a table with the keys of a bench, got {short(value)}", key)
    for key in ("title", "paper", "table"):
        if key not in given:
            at.add(f"{key} is missing: say what the protocol is")
    if not any(size in given for size in SIZES):
        at.add("has no settings: it needs [mini], [full] or both")


def _sizes(given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(size for size in SIZES if isinstance(given.get(size), dict))


def locate(text: str | os.PathLike[str]) -> Path:
    """Return the file of "protocol:NAME", or of a path. Raises `UnknownName`, `BadInput` for no file."""
    given = str(text)
    if given.startswith(PREFIX):
        return find(given.removeprefix(PREFIX))
    if not Path(given).is_file():
        raise BadInput(f"no bench file at {given}; a protocol is {PREFIX}NAME (efface list protocols)")
    return Path(given)


__all__ = ["PREFIX", "Protocol", "describe", "find", "is_protocol", "locate", "names", "read"]
