"""The bench file: six keys in TOML. Everything that is wrong with it is said at once.

model = "mini"                       # as --model takes it
concepts = ["church", ["beer", "wine"]]   # a list within the list is erased at once
methods = ["uce", "esd:mini-u", {name = "uce", erase_scale = 0.5}]
attacks = ["inversion", {name = "seed_search", preset = "mini"}]
metrics = ["ssim", "clip_score"]     # besides the judge's verdict; left out: all that this machine can compute
seeds = {target = 12, related = 4, others = 1, implicit = 2, styled = 1, attack = 8, method = [0]}
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface import registry
from efface.concept import Concept, table
from efface.errors import BadInput, EffaceError, unknown
from efface.evaluation.prompts import Plan
from efface.util import untrusted
from efface.util.ranges import short
from efface.util.shipped import SHIPPED

KEYS = ("model", "concepts", "methods", "attacks", "metrics", "seeds")
NEEDED = ("concepts", "methods")
COUNTS = {"target": 12, "related": 4, "others": 1, "implicit": 2, "styled": 1, "attack": 8}
MOST = 10_000  # seeds of one kind


@dataclass(frozen=True)
class Chosen:
    """A method or an attack with its settings. fields: those given, as pairs of name and value, sorted."""

    kind: str
    name: str
    preset: str = ""
    fields: tuple[tuple[str, Any], ...] = ()

    def make(self) -> Any:
        """Return the method or attack."""
        return registry.get(self.kind, self.name).preset(self.preset, **dict(self.fields))

    @property
    def label(self) -> str:
        """Return "uce", "esd:mini-u" or "uce erase_scale=0.5"."""
        return " ".join([self.name + (f":{self.preset}" if self.preset else ""), *(f"{k}={v}" for k, v in self.fields)])


@dataclass(frozen=True)
class Bench:
    """Hold what a bench file asks for.

    concepts: each element is erased at once. attack_seeds: of each attacked prompt. method_seeds: each is one run.
    """

    model: str
    concepts: tuple[tuple[Concept, ...], ...]
    methods: tuple[Chosen, ...]
    attacks: tuple[Chosen, ...] = ()
    metrics: tuple[str, ...] | None = None
    plan: Plan = field(default_factory=Plan)
    attack_seeds: tuple[int, ...] = tuple(range(COUNTS["attack"]))
    method_seeds: tuple[int, ...] = (0,)


class _Reading:
    """Collect everything that is wrong, each with the line it is on."""

    def __init__(self, text: str, where: str):
        self.lines, self.where, self.wrong = text.splitlines(), where, []

    def add(self, error: object, *hints: str) -> None:
        text = str(error)
        if "did you mean" in text:  # one message for all: the nearest match says enough
            text = text.partition(" (known: ")[0]
        self.wrong.append((self.line(*hints), text))

    def line(self, *hints: str) -> int:
        """Return the number of the first line below the hints before it that holds each of them; 0 if none does."""
        at = 0
        for hint in hints:
            found = (i for i in range(max(at - 1, 0), len(self.lines)) if hint in self.lines[i].partition("#")[0])
            at = next(found, at - 1) + 1
        return at

    def attempt(self, call: Callable[[], Any], *hints: str) -> Any:
        """Return what a call returns; None, after noting its error, when it raises one of ours."""
        try:
            return call()
        except EffaceError as error:
            self.add(error, *hints)
            return None

    def finish(self) -> None:
        if self.wrong:
            told = "; ".join((f"line {line}: " if line else "") + error for line, error in sorted(self.wrong))
            count = f"{len(self.wrong)} mistakes: " if len(self.wrong) > 1 else ""
            raise BadInput(f"{self.where}: {count}{told}")


def read(path: Path) -> Bench:
    """Read a bench file. Raises `BadFile` for no TOML, `BadInput` with everything that is wrong, and its lines."""
    text = untrusted.read_text(path)
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
    return parse(given, text, str(path))


def parse(given: Mapping[str, Any], text: str = "", where: str = "the bench") -> Bench:
    """Check a bench that was read from TOML; `text` is its source, to find lines in."""
    at = _Reading(text, where)
    for key in given:
        if key not in KEYS:
            at.add(unknown("key", key, KEYS), key)
    for key in NEEDED:
        if not given.get(key):
            at.add(f"{key} is missing: give at least one")
    model = given.get("model", "mini")
    if not isinstance(model, str):
        at.add(f"model is a text, got {short(model)}", "model")
        model = "mini"
    concepts = _concepts(at, given.get("concepts", ()), model)
    methods = _chosen(at, "methods", given.get("methods", ()), model)
    attacks = _chosen(at, "attacks", given.get("attacks", ()), model)
    metrics = _metrics(at, given.get("metrics"))
    counts, method_seeds = _seeds(at, given.get("seeds", {}))
    at.finish()
    seeds: dict[str, Any] = {f"{name}_seeds": tuple(range(counts[name])) for name in ("target", "related")}
    seeds |= {f"{name}_seeds": tuple(range(counts[name])) for name in ("implicit", "styled")}
    plan = Plan(**seeds, seeds=tuple(range(counts["others"])), **_sampling(model))
    return Bench(model, concepts, methods, attacks, metrics, plan, tuple(range(counts["attack"])), method_seeds)


def _sampling(model: str) -> dict[str, Any]:
    return SHIPPED[model].sampling | SHIPPED[model].judged if model in SHIPPED else {}


def _list(at: _Reading, key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    at.add(f"{key} is a list, got {short(value)}", key)
    return ()


def _concepts(at: _Reading, value: Any, model: str) -> tuple[tuple[Concept, ...], ...]:
    known = at.attempt(lambda: table(model), "model") or {}
    found = []
    for one in _list(at, "concepts", value):
        names = one if isinstance(one, list | tuple) else [one]
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            at.add(f"a concept is a name, or a list of names that are erased at once, got {short(one)}", "concepts")
            continue
        for name in names:
            if known and name not in known:
                at.add(unknown("concept", name, known), "concepts", name)
        found.append(tuple(known.get(name) or Concept(name) for name in names))
    twice = sorted({", ".join(c.name for c in one) for one in found if found.count(one) > 1})
    if twice:
        at.add(f"named twice: {'; '.join(twice)}", "concepts")
    return tuple(found)


def _chosen(at: _Reading, kind: str, value: Any, model: str) -> tuple[Chosen, ...]:
    found = []
    for one in _list(at, kind, value):
        if isinstance(one, str):
            name, _, preset = one.partition(":")
            fields: dict[str, Any] = {}
        elif isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("preset", ""), str):
            fields = {k: v for k, v in one.items() if k not in ("name", "preset")}
            name, preset = one["name"], one.get("preset", "")
        else:
            what = f"one of {kind} is a name, name:preset, or a table with a name, got {short(one)}"
            at.add(what, kind)
            continue
        cls = at.attempt(lambda name=name: registry.get(kind, name), kind, name)
        if cls is None:
            continue
        if not preset and model in SHIPPED and model in cls.PRESETS:
            preset = model
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        chosen = Chosen(kind, name, preset, tuple(sorted(values.items())))
        if at.attempt(chosen.make, kind, name) is not None:
            found.append(chosen)
    twice = sorted({one.label for one in found if found.count(one) > 1})
    if twice:
        at.add(f"named twice: {', '.join(twice)}", kind)
    return tuple(found)


def _metrics(at: _Reading, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [str(name) for name in _list(at, "metrics", value)]
    known = [at.attempt(lambda name=name: registry.get("metrics", name), "metrics", name) for name in names]
    return tuple(name for name, cls in zip(names, known, strict=True) if cls is not None)


def _seeds(at: _Reading, value: Any) -> tuple[dict[str, int], tuple[int, ...]]:
    counts, method = dict(COUNTS), (0,)
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"target": value, "attack": value}
    if not isinstance(value, dict):
        at.add(f"seeds is a number, or a table of {', '.join([*COUNTS, 'method'])}, got {short(value)}", "seeds")
        return counts, method
    for name, given in value.items():
        if name == "method":
            numbers = given if isinstance(given, list | tuple) else [given]
            if not numbers or not all(untrusted.is_count(one, 0, 2**63 - 1) for one in numbers):
                at.add(f"seeds of method are whole numbers from 0 to 2^63 - 1, got {short(given)}", "seeds", name)
            else:
                method = tuple(dict.fromkeys(numbers))
        elif name not in COUNTS:
            at.add(unknown("kind of seeds", str(name), [*COUNTS, "method"]), "seeds", str(name))
        elif not untrusted.is_count(given, int(name in ("target", "others", "attack")), MOST):
            at.add(f"seeds of {name} are a number of seeds up to {MOST}, got {short(given)}", "seeds", str(name))
        else:
            counts[name] = given
    return counts, method


def word(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"\W+", "-", text).strip("-")


__all__ = ["Bench", "Chosen", "parse", "read", "word"]
