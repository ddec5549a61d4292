"""Concepts of a bench: names, tables of fields, or choices from the model's concept table."""

from collections.abc import Mapping, Sequence
from typing import Any

from efface.concept import TEMPLATES, Concept
from efface.errors import unknown
from efface.evaluation.bench.reading import Reading
from efface.util import untrusted
from efface.util.ranges import short

CHOICE = ("kind", "family", "count", "at_once")


def read_concepts(at: Reading, key: str, value: Any, known: Mapping[str, Concept]) -> tuple[tuple[Concept, ...], ...]:
    """Read what is erased: each element of the result at once. Notes what is wrong, and what is named twice."""
    found: list[tuple[Concept, ...]] = []
    for one in at.list_of(key, value):
        if isinstance(one, dict) and "name" not in one:
            found += _choice(at, key, one, known)
            continue
        parts = list(one) if isinstance(one, list | tuple) else [one]
        if not parts or not all(_is_named(part) for part in parts):
            at.add(f"a concept is a name, or a list of names that are erased at once, got {short(one)}", key)
            continue
        made = [_concept(at, key, part, known) for part in parts]
        found.append(tuple(concept for concept in made if concept is not None))
    twice = sorted({", ".join(c.name for c in one) for one in found if found.count(one) > 1})
    if twice:
        at.add(f"named twice: {'; '.join(twice)}", key)
    return tuple(found)


def _is_named(part: Any) -> bool:
    name = part.get("name") if isinstance(part, dict) else part
    return isinstance(name, str) and bool(name.strip())


def _concept(at: Reading, key: str, part: Any, known: Mapping[str, Concept]) -> Concept | None:
    if isinstance(part, dict):
        return at.attempt(lambda: Concept.from_json(part), key, part["name"])
    if known and part not in known:
        at.add(unknown("concept", part, known), key, part)
    return known.get(part) or Concept(part)


def _choice(
    at: Reading, key: str, one: Mapping[str, Any], known: Mapping[str, Concept]
) -> Sequence[tuple[Concept, ...]]:
    """Return concepts of one kind or family at equal distances in the table, each alone or all at once."""
    for name in one:
        if name not in CHOICE:
            at.add(unknown("key of a choice of concepts", str(name), CHOICE), key, str(name))
            return ()
    if not known:
        at.add("concepts can only be chosen from a concept table, which this model has not: name them", key)
        return ()
    kind, family, count = (
        one.get("kind", ""),
        one.get("family", ""),
        one.get("count", 1 if "kind" in one else len(known)),
    )
    if kind and kind not in TEMPLATES:
        at.add(unknown("kind of concept", str(kind), TEMPLATES), key, "kind")
    if not untrusted.is_count(count, 1, len(known)):
        at.add(f"count is a number of concepts from 1 to the table's {len(known)}, got {short(count)}", key, "count")
        return ()
    fitting = [c for c in known.values() if (not kind or c.kind == kind) and (not family or c.family == family)]
    if not fitting:
        families = sorted({c.family for c in known.values() if c.family})
        at.add(f"no concept of the table is of kind {kind or 'any'} and family {family or 'any'} ({families})", key)
        return ()
    chosen = fitting[:: max(1, len(fitting) // count)][:count]
    return (tuple(chosen),) if one.get("at_once") is True else tuple((concept,) for concept in chosen)


__all__ = ["read_concepts"]
