"""JSON that others wrote: one reader for headers, configurations and records, with a bound on size and depth."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from efface.errors import BadFile, BadInput, EffaceError

MAX_BYTES = 100_000_000  # as the safetensors format allows for a header
MAX_DEPTH = 400  # levels; an edit that is a sum of 190 others has 390


def read(path: Path, error: type[EffaceError] = BadFile) -> dict[str, Any]:
    """Return the JSON object in a file; raises `error` for a file that is missing or that `parse` refuses."""
    return parse(read_text(path, error), str(path), error)


def read_text(path: Path, error: type[EffaceError] = BadFile) -> str:
    """Return a text file in UTF-8; raises `error` for one that is missing, too large or no text."""
    try:
        if path.exists() and not path.is_file():
            raise error(f"cannot read {path}: it is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise error(f"cannot read {path}: it has {path.stat().st_size} bytes, at most {MAX_BYTES} are read")
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {path}: {_one_line(problem)}") from problem


def parse(text: str | bytes, what: str, error: type[EffaceError] = BadFile) -> dict[str, Any]:
    """Return a JSON object. No key may be there twice, and texts must be valid Unicode.

    what: names the text in messages. Raises `error` for anything else, larger than MAX_BYTES or deeper than MAX_DEPTH.
    """
    if len(text) > MAX_BYTES:
        raise error(f"{what} is too large: {len(text)} bytes of JSON, at most {MAX_BYTES} are read")
    try:
        found = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_unique)
        deep = depth(found) > MAX_DEPTH
    except RecursionError:
        deep = True
        found = None
    except ValueError as problem:
        raise error(f"{what} is not valid JSON: {_one_line(problem)}") from problem
    if deep:
        raise error(f"{what} is nested too deep: at most {MAX_DEPTH} levels are read")
    if not isinstance(found, dict):
        raise error(f"{what} is not valid JSON of an object: it is {_kind(found)}")
    return found


def depth(value: Any) -> int:
    """Return the levels of lists and objects in a JSON value; raises `ValueError` for text that is not Unicode."""
    levels, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list | tuple | str)]:
        for text in level:
            if isinstance(text, str):
                text.encode()  # a lone surrogate could neither be printed nor hashed
            elif isinstance(text, dict):
                "".join(map(str, text)).encode()
        level = [item for item in level if not isinstance(item, str)]
        levels += bool(level)
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return levels


def is_texts(value: Any) -> bool:
    """Return whether a JSON value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def are_numbers(values: Iterable[Any]) -> bool:
    """Return whether JSON values are all finite numbers."""
    return all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)


def read_lines(path: str | Path, what: str) -> list[str]:
    """Return the lines of a text file that are not empty; raises `BadFile`, and `BadInput` when it has none.

    what: they are, for the message: "prompts".
    """
    lines = [text for line in read_text(Path(path)).splitlines() if (text := line.strip())]
    if not lines:
        raise BadInput(f"{path} has no {what}: write one on each line")
    return lines


def is_count(value: Any, low: int, high: int) -> bool:
    """Return whether a JSON value is a whole number in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def some(names: Sequence[str], count: int = 3) -> str:
    """Return the first few of some names, shortened and on one line, and how many more there are."""
    shown = ", ".join(shorten(name) for name in names[:count])
    return f"{shown} (and {len(names) - count} more)" if len(names) > count else shown


def shorten(text: str, limit: int = 120) -> str:
    """Return a text of a file on one line, cut to `limit` characters, quoted when it is not printable."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shorten(twice)!r} is there twice")
    return found


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
