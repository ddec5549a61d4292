"""The first thing to run: erase one concept by four methods and lay the results side by side on a page."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from efface import __version__, registry
from efface.concept import Concept
from efface.evaluation.evaluate import Judge, check_judged, evaluate, images
from efface.evaluation.prompts import Plan, hints
from efface.report.page import Column, Page, Row, save, shots

if TYPE_CHECKING:
    from torch import Tensor

    from efface.edits.edit import Edit
    from efface.evaluation.store import Store
    from efface.models.model import Model

SHOWN = 3  # seeds of each cell
COUNT = {2: "two", 3: "three", 4: "four"}
PLAN = Plan(  # about 200 images a column: minutes on two cores
    steps=12,  # of mini's own fast solver: judged as well as 50 of DDIM, see its model card
    focus=tuple(range(32)),
    near=tuple(range(12)),
    seeds=tuple(range(2)),
    hints=tuple(range(3)),
    styled=tuple(range(2)),
)


class Recipe(NamedTuple):
    """One column of the demo: title, method, what to say about it, its preset ("": mini's if it has one)."""

    title: str
    method: str
    summary: str
    preset: str = ""

    def named(self) -> str:
        """Return the preset that is used."""
        return self.preset or ("mini" if "mini" in registry.get("methods", self.method).PRESETS else "")


RECIPES = (
    Recipe("UCE", "uce", "closed form: a few text vectors are sent elsewhere, the kept ones stay where they are"),
    Recipe("ESD-x", "esd", "fine-tuning: cross-attention learns to point away from the concept"),
    Recipe("negative prompt", "negative", "guidance: the concept is named as what not to draw; no weight changes"),
    Recipe("SLD-max", "sld", "guidance: pushed away from the concept wherever it leans towards it", "max"),
)


def demo(
    out: Path,
    model: "Model",
    concept: Concept,
    table: Mapping[str, Concept],
    judge: Judge,
    plan: Plan = PLAN,
    recipes: Sequence[Recipe] = RECIPES,
    store: "Store | None" = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Erase a concept by each recipe, judge it, and write `out`/index.html and the edits; return the page's path.

    say: is told each step as it begins. Raises what `evaluate` raises, and WriteError.
    """
    check_judged([concept], table, judge)
    began = time.perf_counter()
    keep = keeps(concept, table)
    rows = choose(concept, table)
    pictures = {"original": _grid(model, None, rows, plan, store)}
    columns, times = [], []
    for recipe in recipes:
        with _timed(f"erasing {concept.name} with {recipe.title}", say) as erasing:
            edit = fit(model, recipe, concept, keep)
        path = out / f"{concept.name.replace(' ', '-')}-{recipe.method}.safetensors"
        edit.save(path)
        with _timed(f"judging {recipe.title}", say) as judging:
            result = evaluate(model, edit, concept, table, judge, plan, store)
            pictures[recipe.title] = _grid(model, edit, rows, plan, store)
        columns.append(Column(recipe.title, recipe.summary, erasing.seconds, edit.meta, result))
        times += [(f"{recipe.title}: erase", _seconds(erasing.seconds))]
        times += [(f"{recipe.title}: draw and judge", _seconds(judging.seconds))]
    total = time.perf_counter() - began
    page = Page(
        title=f"“{concept.name}”, erased from {model.name or 'a model'} by {_count(recipes)}",
        lead="Each column draws the same prompts from the same noise. "
        "A good method changes the first rows and nothing else.",
        columns=columns,
        rows=[_row(kind, name, prompt, i, pictures, judge) for i, (kind, name, prompt) in enumerate(rows)],
        facts=_facts(model, columns, total),
        times=[*times, ("all of it", _seconds(total))],
        commands=_commands(concept, keep, recipes, model, plan),
    )
    save(page, out / "index.html")
    return out / "index.html"


def keeps(concept: Concept, table: Mapping[str, Concept]) -> tuple[Concept, ...]:
    """Return every second other object, and for a style every second other style and object.

    The rest shows what happens to concepts that no one protected. A style stands in the prompts of objects, so these
    have to be kept as well; an object is erased with the prompts of no style.
    """
    kinds = {concept.kind, "object"}
    return tuple(c for kind in sorted(kinds) for c in _others(concept, table, kind)[::2])


def _others(concept: Concept, table: Mapping[str, Concept], kind: str) -> list[Concept]:
    return [c for c in table.values() if c.kind == kind and c.name != concept.name]


def fit(model: "Model", recipe: Recipe, concept: Concept, keep: Sequence[Concept]) -> "Edit":
    """Run one method with its preset for the embedded model, when it has one."""
    return registry.get("methods", recipe.method).preset(recipe.named())(model, [concept], keep, seed=0)


def choose(concept: Concept, table: Mapping[str, Concept]) -> list[tuple[str, str, str]]:
    """Return (group, concept, prompt) of the grid: the erased one, its keywords, two related, three unrelated."""
    chosen = [("erased", concept.name, concept.texts[0])]
    chosen += [("only hinted at", concept.name, phrase) for phrase in hints(concept.keywords)[:1]]
    near = [table[name] for name in concept.related if name in table][:2]
    far = [c for c in table.values() if c.name not in (concept.name, *concept.related) and c.kind == concept.kind]
    spread = far[len(far) // 6 :: max(1, len(far) // 3)][:3]  # from three parts of the table
    chosen += [("related", c.name, c.texts[0]) for c in near]
    return chosen + [("unrelated", c.name, c.texts[0]) for c in spread]


def _grid(
    model: "Model",
    edit: "Edit | None",
    rows: Sequence[tuple[str, str, str]],
    plan: Plan,
    store: "Store | None",
) -> "Tensor":
    """Draw (rows, seeds, 3, h, w) with seeds that the evaluation draws as well, so that nothing is drawn twice."""
    from efface.query import Query

    seeds = plan.focus[:SHOWN]
    queries = [Query(prompt, seed, **plan.sampling) for _, _, prompt in rows for seed in seeds]
    return images(model, edit, queries, plan.batch, store=store).unflatten(0, (len(rows), len(seeds)))


def _row(kind: str, name: str, prompt: str, index: int, pictures: Mapping[str, "Tensor"], judge: Judge) -> Row:
    cells = []
    for column in pictures.values():
        seen = [judge.classes[i] for i in judge.objects(column[index]).argmax(dim=1).tolist()]
        cells.append(shots(column[index], seen, name))
    return Row(prompt, kind, cells)


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


def _facts(model: "Model", columns: Sequence[Column], seconds: float) -> dict[str, str]:
    import torch

    profile, threads = columns[0].result["profile"], torch.get_num_threads()
    return {
        "model": model.name or "unnamed",
        "sampler": f"{profile['solver']}, {profile['steps']} steps, guidance {profile['guidance']:g}",
        "images": f"{_drawn(columns[0].result)} prompts and seeds × {len(columns) + 1} models",
        "computed in": f"{_seconds(seconds)} on {threads} of {os.cpu_count()} cores ({platform.machine()})",
        "efface": __version__,
    }


def _count(recipes: Sequence[Recipe]) -> str:
    n = len(recipes)
    return "one method" if n == 1 else f"{COUNT.get(n, n)} methods"


def _drawn(result: Mapping[str, Any]) -> int:
    """Count the judged images of one model; the groups left out are parts of others."""
    parts = ("objects", "styles", "unprotected")
    return sum(group["before"]["n"] for name, group in result["groups"].items() if name not in parts)


def _commands(
    concept: Concept, keep: Sequence[Concept], recipes: Sequence[Recipe], model: "Model", plan: Plan
) -> list[str]:
    keeps = " ".join(f'"{c.name}"' for c in keep)
    where = model.name or "MODEL"
    lines = []
    for recipe in recipes:
        preset = f" --preset {recipe.named()}" if recipe.named() else ""
        file = f"{concept.name.replace(' ', '-')}-{recipe.method}.safetensors"
        lines.append(f'efface erase {recipe.method} "{concept.name}"{preset} --keep {keeps} --model {where} -o {file}')
        lines.append(f"efface evaluate {file} {_flags(plan)} --json {Path(file).stem}.json")
    return lines


def _flags(plan: Plan) -> str:
    """Write a plan as flags of `efface evaluate`."""
    seeds = {"target": plan.focus, "related": plan.near, "": plan.seeds, "hint": plan.hints, "styled": plan.styled}
    flags = [f"--{name}-seeds" if name else "--seeds" for name in seeds]
    texts = [_seeds(numbers) for numbers in seeds.values()]
    sampling = f"--steps {plan.steps} --guidance {plan.guidance:g}" + (
        f" --solver {plan.solver}" if plan.solver else ""
    )
    return " ".join(f"{flag} {text}" for flag, text in zip(flags, texts, strict=True)) + " " + sampling


def _seeds(numbers: Sequence[int]) -> str:
    whole = bool(numbers) and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]}:{numbers[-1] + 1}" if whole else ",".join(map(str, numbers))
