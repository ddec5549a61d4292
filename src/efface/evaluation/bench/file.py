"""The bench file: six keys in TOML, and five more. Everything that is wrong with it is said at once.

model = "mini"                       # as --model takes it
concepts = ["church", ["beer", "wine"]]   # a list within the list is erased at once
methods = ["uce", "esd:mini-u", {name = "uce", erase_scale = 0.5}]
attacks = ["inversion", {name = "seed_search", preset = "mini"}]
metrics = ["ssim", {name = "lpips", weights = "alexnet.safetensors"}]   # left out: all that this machine can compute
seeds = {target = 12, related = 4, others = 1, implicit = 2, styled = 1, attack = 8, method = [0]}

More: `judge` (as --judge takes it), `preserve` (names; without it every second other concept of the table), `sampling`
({steps, guidance, solver}), `look_alikes` (how many others count as related by sight), and `prompts`, in place of the
table's (`prompt_sets`). A concept may be a table of its own fields, {name = "Monet", kind = "style"}, or a choice from
the model's table: {kind = "object", count = 2} or {family = "weapon"}, with at_once = true for all in one edit.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface import registry
from efface.concept import Concept, table
from efface.errors import BadInput, EffaceError, unknown
from efface.evaluation.bench.choices import read_concepts
from efface.evaluation.bench.prompt_sets import PromptSet, read_sets
from efface.evaluation.bench.reading import Reading
from efface.evaluation.prompts import Plan
from efface.judge import find_judge
from efface.metric import lacking
from efface.query import Query
from efface.util import untrusted
from efface.util.ranges import short
from efface.util.shipped import SHIPPED

KEYS = (
    "model", "concepts", "methods", "attacks", "metrics", "seeds", "judge", "preserve", "sampling", "look_alikes",
    "prompts",
)  # fmt: skip
NEEDED = ("concepts", "methods")
COUNTS = {
    "target": 12, "related": 4, "others": 1, "implicit": 2, "styled": 1, "reworded": 0, "paired": 0, "attack": 8,
}  # fmt: skip
MOST = 10_000  # seeds of one kind


@dataclass(frozen=True)
class Chosen:
    """A method, an attack or a metric with its settings. fields: those given, as pairs of name and value, sorted."""

    kind: str
    name: str
    preset: str = ""
    fields: tuple[tuple[str, Any], ...] = ()

    def make(self) -> Any:
        """Return the method, attack or metric."""
        return registry.get(self.kind, self.name).preset(self.preset, **dict(self.fields))

    @property
    def label(self) -> str:
        """Return "uce", "esd:mini-u" or "uce erase_scale=0.5"."""
        return " ".join([self.name + (f":{self.preset}" if self.preset else ""), *(f"{k}={v}" for k, v in self.fields)])


@dataclass(frozen=True)
class Bench:
    """Hold what a bench file asks for.

    concepts: each element is erased at once. attack_seeds: of each attacked prompt. method_seeds: each is one run.
    judge: "" for the model's own. preserve: None for every second other concept. prompts: () for the plan's.
    """

    model: str
    concepts: tuple[tuple[Concept, ...], ...]
    methods: tuple[Chosen, ...]
    attacks: tuple[Chosen, ...] = ()
    metrics: tuple[Chosen, ...] | None = None
    plan: Plan = field(default_factory=Plan)
    attack_seeds: tuple[int, ...] = tuple(range(COUNTS["attack"]))
    method_seeds: tuple[int, ...] = (0,)
    judge: str = ""
    preserve: tuple[Concept, ...] | None = None
    prompts: tuple[PromptSet, ...] = ()


def read(path: Path, model: str = "", data: Mapping[str, Path] | None = None) -> Bench:
    """Read a bench file. Raises `BadFile` for no TOML, `BadInput` with everything that is wrong, and its lines.

    model: in place of the file's. data: files that the bench asks for by name, "@coco".
    """
    text = untrusted.read_text(path)
    return parse(load(text, path), text, str(path), model, data, path.parent)


def load(text: str, path: Path) -> dict[str, Any]:
    """Return the values of a TOML text. Raises `BadInput`."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error


def parse(
    given: Mapping[str, Any], text: str = "", where: str = "the bench", model: str = "",
    data: Mapping[str, Path] | None = None, folder: Path | None = None,
) -> Bench:  # fmt: skip
    """Check a bench that was read from TOML; `text` is its source, to find lines in, `folder` where its files are."""
    at = Reading(text, where)
    bench = collect(at, given, model, data or {}, folder or Path())
    at.finish()
    return bench


def collect(
    at: Reading, given: Mapping[str, Any], model: str, data: Mapping[str, Path], folder: Path,
    needed: tuple[str, ...] = NEEDED,
) -> Bench:  # fmt: skip
    """Read a bench, and note what is wrong with it; then what it returns means nothing."""
    for key in given:
        if key not in KEYS:
            at.add(unknown("key", key, KEYS), key)
    for key in needed:
        if not given.get(key):
            at.add(f"{key} is missing: give at least one")
    model = model or given.get("model", "mini")
    if not isinstance(model, str):
        at.add(f"model is a text, got {short(model)}", "model")
        model = "mini"
    known = at.attempt(lambda: table(model), "model") or {}
    concepts = read_concepts(at, "concepts", given.get("concepts", ()), known)
    preserve = read_concepts(at, "preserve", given["preserve"], known) if "preserve" in given else None
    methods = _chosen(at, "methods", given.get("methods", ()), model)
    attacks = _chosen(at, "attacks", given.get("attacks", ()), model)
    metrics = _chosen(at, "metrics", given["metrics"], model, data) if given.get("metrics") is not None else None
    judge = _judge(at, given.get("judge", ""), model)
    _check_apart(at, judge, attacks, model)
    counts, method_seeds = _seeds(at, given.get("seeds", {}))
    sampling = _sampling(at, given.get("sampling", {}), model)
    near = given.get("look_alikes", 0)
    if not untrusted.is_count(near, 0, 1000):
        at.add(f"look_alikes is a number of concepts up to 1000, got {short(near)}", "look_alikes")
        near = 0
    prompts = read_sets(at, given.get("prompts", ()), data, folder)
    seeds: dict[str, Any] = {f"{n}_seeds": tuple(range(counts[n])) for n in counts if n not in ("others", "attack")}
    plan = Plan(**seeds, seeds=tuple(range(counts["others"])), look_alikes=near, **sampling)
    whole = None if preserve is None else tuple(concept for group in preserve for concept in group)
    return Bench(
        model, concepts, methods, attacks, metrics, plan, tuple(range(counts["attack"])), method_seeds, judge, whole,
        prompts,
    )  # fmt: skip


def _sampling(at: Reading, value: Any, model: str) -> dict[str, Any]:
    usual = SHIPPED[model].sampling | SHIPPED[model].judged if model in SHIPPED else {}
    if not isinstance(value, dict):
        at.add(f"sampling is a table of steps, guidance and solver, got {short(value)}", "sampling")
        return usual
    for key in value:
        if key not in ("steps", "guidance", "solver"):
            at.add(unknown("key of sampling", str(key), ("steps", "guidance", "solver")), "sampling", str(key))
            return usual
    made = at.attempt(lambda: Query("", **usual | value), "sampling")
    return usual | value if made is not None else usual


def _judge(at: Reading, value: Any, model: str) -> str:
    if not isinstance(value, str):
        at.add(f"judge is a text, got {short(value)}", "judge")
        return ""
    if value:
        at.attempt(lambda: find_judge(model, value), "judge")
    return value


def _check_apart(at: Reading, judge: str, attacks: Sequence[Chosen], model: str) -> None:
    """Note attacks that need a judge to ask when the only one decides."""
    try:
        cls, own = find_judge(model, judge)
    except EffaceError:
        return  # noted already
    asking = [one.label for one in attacks if "judge" in registry.get("attacks", one.name).NEEDS]
    if asking and own == cls.ASKED and model in cls.MODELS:
        at.add(f"the judge {judge} cannot decide on attacks that ask it: {', '.join(asking)}", "judge")


def _chosen(
    at: Reading, kind: str, value: Any, model: str, data: Mapping[str, Path] | None = None
) -> tuple[Chosen, ...]:
    found = []
    for one in at.list_of(kind, value):
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
        for k in [k for k, v in values.items() if data is not None and isinstance(v, str) and v.startswith("@")]:
            path = (data or {}).get(str(values.pop(k))[1:])  # without it, what the metric finds by itself
            values |= {k: str(path)} if path else {}
        chosen = Chosen(kind, name, preset, tuple(sorted(values.items())))
        made = at.attempt(chosen.make, kind, name)
        if made is not None:
            found.append(chosen)
            for what in lacking(made) if kind == "metrics" else ():
                at.add(f"the metric {name} needs {what}", kind, name)
    called = [one.make().label if kind == "metrics" else one.label for one in found]
    twice = sorted({label for label in called if called.count(label) > 1})
    if twice:
        at.add(f"named twice: {', '.join(twice)}", kind)
    return tuple(found)


def _seeds(at: Reading, value: Any) -> tuple[dict[str, int], tuple[int, ...]]:
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
