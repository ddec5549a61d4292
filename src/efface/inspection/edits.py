"""Inspect efface's own files: edits, keys, findings and records."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.edits.check import check_provenance
from efface.edits.provenance import FORMAT
from efface.errors import BadEdit, BadFile
from efface.inspection import names
from efface.inspection.summary import Summary
from efface.util import untrusted
from efface.util.untrusted import shorten

BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
SHOWN = ("method", "preset", "seed", "created", "seconds", "git", "versions", "fields")


def edit(path: Path, entries: Mapping[str, Any], header: str) -> Summary:
    """Return what an edit or a key is. Raises `BadEdit` for a damaged one, or of a newer format."""
    meta = _checked(path, header)
    shapes = {name: entry["shape"] for name, entry in entries.items()}
    maps = [(list(found), shapes.get(f"maps.{i}.left", [])) for i, found in enumerate(meta["maps"])]
    delta = {name.removeprefix("delta."): shape for name, shape in shapes.items() if name.startswith("delta.")}
    if any(len(shape) != 2 for _, shape in maps):
        raise BadEdit(f"{path} is damaged: it has no factors of one of its maps")
    ranks: dict[str, int] = {}
    for found, shape in maps:
        for name in found:
            ranks[name] = ranks.get(name, 0) + shape[1]
    how = {name: f"rank {ranks[name]}" for name in ranks if name not in delta}
    how |= {name: f"dense + rank {ranks[name]}" if name in ranks else "dense" for name in delta}
    base = meta.get("base", {})
    readers = base.get("cross_attention") or []
    width = maps[0][1][0] if maps else 0
    rows = next((shape[0] for name, shape in delta.items() if name.endswith("context_embedder.weight")), 0)
    kind = "key (learned prompts; changes no weight)" if "key" in meta else "edit"
    return Summary(
        kind,
        str(path),
        path.stat().st_size,
        _family(base, names.architecture([*how, *readers], width, rows)),
        names.groups(how, {name: math.prod(shape) for name, shape in delta.items()}, base.get("blocks") or BLOCKS),
        len(set(how) & set(readers)) / len(readers) if readers else None,
        _made(meta),
        f"efface, edit format {FORMAT}",
        ("efface",),
        notes=_notes(meta, maps),
    )


def _family(base: Mapping[str, Any], architecture: str) -> str:
    from efface.util.shipped import SHIPPED

    name = base.get("name", "")
    return f"{name}: {SHIPPED[name].about}" if name in SHIPPED else names.title(architecture)


def _checked(path: Path, header: str) -> dict[str, Any]:
    meta = untrusted.parse(header, f"{path} is not a valid edit: its header", BadEdit)
    if meta.get("format") != FORMAT:
        number = shorten(repr(meta.get("format")))
        raise BadEdit(f"{path} has edit format {number}; this version reads {FORMAT}: update efface")
    try:
        check_provenance({key: value for key, value in meta.items() if key not in ("maps", "guards", "id")})
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise BadEdit(f"{path} is not a valid edit: {shorten(str(error), 300)}") from error
    maps, guards = meta.get("maps"), meta.get("guards")
    if not isinstance(maps, list) or not all(map(untrusted.is_texts, maps)) or not isinstance(guards, list):
        raise BadEdit(f"{path} is not a valid edit: its maps and guards are no lists")
    return meta


def _made(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return how an edit was made; of a combination, what its parts were made for."""
    parts, left = [], [meta]
    while left:
        one = left.pop()
        if "op" in one:
            left += reversed(one.get("parts", ()))
        else:
            parts.append(one)
    base = meta.get("base", {})
    found: dict[str, Any] = {
        "erase": _unique(concept["name"] for one in parts for concept in one.get("erase", ())),
        "preserve": _unique(concept["name"] for one in parts for concept in one.get("preserve", one.get("keep", ()))),
        "model": base.get("name", ""),
        "model id": base.get("id", ""),
        "id": meta.get("id", ""),
    }
    own = parts[0] if len(parts) == 1 else {}
    how = {key: own[key] for key in SHOWN if own.get(key) not in (None, "")}
    return {**({"combination": _expression(meta)} if "op" in meta else {}), **how, **found}


def _expression(meta: Mapping[str, Any]) -> str:
    """Return how an edit was put together: "0.5*uce(church) + neon"."""
    op, of = meta.get("op"), meta.get("parts", ())
    parts = [_expression(one) for one in of]
    sums = [f"({text})" if one.get("op") in ("+", "-") else text for one, text in zip(of, parts, strict=True)]
    if op is None:
        erased = ", ".join(concept["name"] for concept in meta.get("erase", ()))
        preset = f":{meta['preset']}" if meta.get("preset") else ""
        return f"{meta.get('method', 'edit')}{preset}({erased})"
    if op == "*":
        return f"{meta.get('scale', 1):g}*{sums[0]}"
    if op in ("+", "-"):
        return f" {op} ".join([parts[0], *(sums[1:] if op == "-" else parts[1:])])
    chosen = "; ".join(f"{key} {', '.join(meta[key])}" for key in ("only", "without") if meta.get(key))
    return f"{op}({', '.join(parts)}{'; ' * bool(chosen)}{chosen})"


def _unique(words: Any) -> list[str]:
    return list(dict.fromkeys(words))


def _notes(meta: Mapping[str, Any], maps: list[Any]) -> tuple[str, ...]:
    notes = []
    for guard in meta["guards"]:
        plain = guard if isinstance(guard, dict) else {}
        name = "a map of the text" if plain.get("map") else plain.get("method", {}).get("name", "a method")
        notes.append(f"acts while images are generated: {shorten(str(name))}")
    if "key" in meta:
        notes.append(f"opens {', '.join(meta['key']['concepts'])}")
    if maps:
        unets = all(name.startswith("unet.") for found, _ in maps for name in found)
        to = "kohya-lora" if unets else "diffusers-lora"
        notes.append(f"a map of the text: exported to a LoRA exactly (efface export --to {to})")
    return tuple(notes)


def finding(path: Path, entries: Mapping[str, Any], header: str) -> Summary:
    """Return what a finding of an attack is. Raises `BadFile` for a damaged one."""
    found = untrusted.parse(header, f"{path} is not a finding of an attack: its header", BadFile)
    queries, meta = found.get("queries"), found.get("meta")
    if not isinstance(queries, list) or not isinstance(meta, dict):
        raise BadFile(f"{path} is not a finding of an attack: it has no queries and no provenance")
    success = [one for one in found.get("success", ()) if isinstance(one, bool)]
    words = {"attack": meta.get("attack"), "seed": meta.get("seed"), "created": meta.get("created")}
    concept = meta.get("concept")
    words["concept"] = concept.get("name") if isinstance(concept, dict) else None
    notes = [f"{len(queries)} queries" + (f", {sum(success)} of {len(success)} succeed" if success else "")]
    notes += ["holds an edit, which is added to the one under attack"] if "edit" in found else []
    made = {key: value for key, value in words.items() if value is not None}
    return Summary("finding of an attack", str(path), path.stat().st_size, made=made, notes=tuple(notes))


def record(path: Path) -> Summary:
    """Return what a record of an evaluation or an attack is, of a .json or .jsonl file. Raises `BadFile`."""
    text = untrusted.read_text(path)
    lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
    first = untrusted.parse(lines[0] if lines else "", f"{path}")
    if not {"format", "edit", "evaluator"} <= first.keys():
        raise BadFile(f"{path} is JSON, but no record of efface: it names no edit and no evaluator")
    kind = "record of an attack" if first.get("kind") == "attack" else "record of an evaluation"
    concepts = first.get("concepts", first.get("concept"))
    edit, judge = (first[key] if isinstance(first[key], dict) else {} for key in ("edit", "evaluator"))
    model = first.get("model") if isinstance(first.get("model"), dict) else {}
    made = {
        "concepts": concepts, "method": edit.get("method"), "edit": edit.get("id"), "judge": judge.get("evaluator"),
        "model": (model or {}).get("name"), "created": first.get("created"),
    }  # fmt: skip
    rows = first.get("rows")
    notes = [f"{len(rows)} rows, one per image"] if isinstance(rows, list) else []
    notes += [f"{len(lines)} records"] if len(lines) > 1 else []
    made = {key: value for key, value in made.items() if value}
    json.dumps(made)
    return Summary(kind, str(path), path.stat().st_size, made=made, notes=tuple(notes))
