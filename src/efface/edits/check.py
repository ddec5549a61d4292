"""What the provenance of an edit must be for efface to read it; it is not part of the edit's id."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from efface.errors import BadEdit
from efface.util.meter import COST
from efface.util.untrusted import is_count, is_texts, shorten

How = Literal["concat", "add"]  # how the prompt of a key is read: beside the text, or added to it
Where = Literal["mid", "mid-up", "down-mid-up"]  # by which blocks
CONCEPTS = ("erase", "preserve")
TEXTS = ("method", "preset", "git", "created", "op", "edit")


def check_provenance(meta: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the provenance of an edit has the types that efface writes.

    Raises `BadEdit` for a bad key. Unknown entries are left as they are; known ones may be missing.
    """
    pending = [meta]
    while pending:
        one = pending.pop()
        _check_one(one)
        pending += one.get("parts", [])


def _check_one(meta: Mapping[str, Any]) -> None:
    base = meta.get("base", {})
    fits = {
        **{name: isinstance(meta.get(name, ""), str) for name in TEXTS},
        **{name: _are_concepts(meta.get(name, [])) for name in CONCEPTS},
        "keep": "op" in meta or _are_concepts(meta.get("keep", [])),
        "parts": _are_objects(meta.get("parts", [])) and ("op" not in meta or "parts" in meta),
        "scale": meta.get("op") != "*" or _is_number(meta.get("scale")),
        "seed": meta.get("seed") is None or is_count(meta["seed"], 0, 2**63 - 1),
        **{name: _is_number(meta.get(name, 0)) for name in COST},
        "fields": isinstance(meta.get("fields", {}), dict),
        "base": isinstance(base, dict) and _is_base(base),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"its {name} is {shorten(repr(meta.get(name)))}")
    if "key" in meta:
        check_key(meta["key"])


def _is_base(base: Mapping[str, Any]) -> bool:
    texts = all(isinstance(base.get(name, ""), str) for name in ("name", "id"))
    tables = [base.get(name, {}) for name in ("hashes", "blocks")]
    pairs = all(isinstance(table, dict) and is_texts(list(table.values())) for table in tables)
    return texts and pairs and (base.get("cross_attention") is None or is_texts(base["cross_attention"]))


def _are_objects(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value)


def _are_concepts(value: Any) -> bool:
    return _are_objects(value) and all(isinstance(item.get("name"), str) for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_key(about: Any) -> None:
    """Raise `BadEdit` unless this says how and where the prompts of a key are read, and which concepts they open."""
    if not isinstance(about, Mapping) or not {"mechanism", "where", "concepts", "each"} <= about.keys():
        raise BadEdit("this edit is not a key: it has no prompt")
    for name, known in (("mechanism", get_args(How)), ("where", get_args(Where)), ("each", (False, True))):
        if about[name] not in known:
            raise BadEdit(f"this key is damaged: its {name} is {shorten(repr(about[name]))}, not one of {known}")
    if not is_texts(about["concepts"]) or not about["concepts"]:
        raise BadEdit(f"this key is damaged: its concepts are {shorten(repr(about['concepts']))}")
