"""The demo: erase one concept by four methods and write a page that compares them."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from efface import __version__, registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.evaluation.evaluate import check_judged, evaluate
from efface.evaluation.prompts import Plan, preserved
from efface.evaluation.record import Record
from efface.evaluation.store import Store
from efface.judge import Judge
from efface.models.model import Model
from efface.report.images import lines
from efface.report.page import Column, Page, save
from efface.util.shipped import SHIPPED

COUNT = {2: "two", 3: "three", 4: "four"}
PLAN = Plan(  # about 170 images per model: minutes on two cores
    **SHIPPED["mini"].judged,
    target_seeds=tuple(range(24)),
    related_seeds=tuple(range(8)),
    seeds=tuple(range(2)),
    implicit_seeds=tuple(range(3)),
    styled_seeds=tuple(range(2)),
)


class Recipe(NamedTuple):
    """One column of the demo: title, method, summary, preset ("": the preset "mini" if there is one)."""

    title: str
    method: str
    summary: str
    preset: str = ""

    def named(self) -> str:
        """Return the name of the preset that is used."""
        return self.preset or ("mini" if "mini" in registry.get("methods", self.method).PRESETS else "")


RECIPES = (
    Recipe(
        "UCE",
        "uce",
        "closed form: the concept's text vectors are mapped to others, the preserved ones stay as they are",
    ),
    Recipe("ESD-x", "esd", "fine-tuning: cross-attention learns to be guided away from the concept"),
    Recipe("negative prompt", "negative", "guidance: the concept is the negative prompt; no weight changes"),
    Recipe("SLD-max", "sld", "guidance: away from the concept where the prediction is close to it", "max"),
)


def demo(
    out: Path,
    model: Model,
    concept: Concept,
    table: Mapping[str, Concept],
    judge: Judge,
    plan: Plan = PLAN,
    recipes: Sequence[Recipe] = RECIPES,
    store: Store | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Erase a concept by each recipe and judge it; write `out`/index.html, the edits and their records.

    say: called with a line about each step when it begins. Returns the page's path. Raises what `evaluate` raises,
    and WriteError.
    """
    check_judged([concept], table, judge)
    began, preserve, store = time.perf_counter(), preserved(concept, table), store or Store.default()
    columns, times = [], []
    for recipe in recipes:
        with _timed(f"erasing {concept.name} with {recipe.title}", say) as erasing:
            edit = fit(model, recipe, concept, preserve)
        stem = f"{concept.name.replace(' ', '-')}-{recipe.method}"
        edit.save(out / f"{stem}.safetensors")
        with _timed(f"judging {recipe.title}", say) as judging:
            record = evaluate(model, edit, concept, table, judge, plan, store)
        record.save(out / f"{stem}.json")
        columns.append(Column(recipe.title, recipe.summary, record))
        times += [(f"{recipe.title}: erase", _seconds(erasing.seconds))]
        times += [(f"{recipe.title}: generate and judge", _seconds(judging.seconds))]
    total = time.perf_counter() - began
    records = [column.record for column in columns]
    page = Page(
        title=f"“{concept.name}”, erased from {model.name or 'a model'} by {_count(recipes)}",
        lead="Each column answers the same prompts from the same noise. "
        "A good method changes the first rows and nothing else.",
        columns=columns,
        lines=lines(records, store),
        facts=_facts(model, records, total),
        times=[*times, ("all of it", _seconds(total))],
        commands=_commands(concept, preserve, recipes, model, plan),
    )
    save(page, out / "index.html")
    return out / "index.html"


def fit(model: Model, recipe: Recipe, concept: Concept, preserve: Sequence[Concept]) -> Edit:
    """Compute the edit of one method, with its preset for the embedded model if it has one."""
    return registry.get("methods", recipe.method).preset(recipe.named())(model, [concept], preserve, seed=0)


class _Clock:
    seconds = 0.0


@contextmanager
def _timed(label: str, say: Callable[[str], None]) -> Iterator[_Clock]:
    say(label)
    clock, began = _Clock(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - began


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"


def _facts(model: Model, records: Sequence[Record], seconds: float) -> dict[str, str]:
    import torch

    sampling, threads = records[0].sampling, torch.get_num_threads()
    asked = sum(row.made_by == "original" for row in records[0].rows)
    return {
        "model": model.name or "unnamed",
        "sampler": f"{sampling.solver}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        "images": f"{asked} prompts and seeds × {len(records) + 1} models",
        "computed in": f"{_seconds(seconds)} on {threads} of {os.cpu_count()} cores ({platform.machine()})",
        "efface": __version__,
    }


def _count(recipes: Sequence[Recipe]) -> str:
    n = len(recipes)
    return "one method" if n == 1 else f"{COUNT.get(n, n)} methods"


def _commands(
    concept: Concept, preserve: Sequence[Concept], recipes: Sequence[Recipe], model: Model, plan: Plan
) -> list[str]:
    names = " ".join(f'"{c.name}"' for c in preserve)
    where = model.name or "MODEL"
    lines = []
    for recipe in recipes:
        preset = f" --preset {recipe.named()}" if recipe.named() else ""
        file = f"{concept.name.replace(' ', '-')}-{recipe.method}.safetensors"
        lines.append(
            f'efface erase {recipe.method} "{concept.name}"{preset} --preserve {names} --model {where} -o {file}'
        )
        lines.append(f"efface evaluate {file} {_flags(plan)} --json {Path(file).stem}.json")
    return lines


def _flags(plan: Plan) -> str:
    """Return a plan as flags of `efface evaluate`."""
    seeds = {"--" + name.replace("_", "-"): _seeds(getattr(plan, name)) for name in plan.SEEDS}
    sampling = f"--steps {plan.steps} --guidance {plan.guidance:g}" + (
        f" --solver {plan.solver}" if plan.solver else ""
    )
    return " ".join(f"{flag} {text}" for flag, text in seeds.items()) + " " + sampling


def _seeds(numbers: Sequence[int]) -> str:
    whole = bool(numbers) and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]}:{numbers[-1] + 1}" if whole else ",".join(map(str, numbers))
