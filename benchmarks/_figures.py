"""What the figures share: edits of one concept with settings of their own, judged once, with records and charts."""

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
from _bench import DOCS, FOLDER, HERE, read_bench
from torch import Tensor

from efface import registry
from efface.concept import Concept, table
from efface.edits.edit import Edit
from efface.edits.provenance import git
from efface.evaluation.evaluate import evaluate
from efface.evaluation.prompts import preserved
from efface.evaluation.stats import wilson
from efface.evaluation.summary import Share
from efface.judges.mini import judge
from efface.models.learned_prompt import unlocked
from efface.models.model import Model
from efface.query import Query
from efface.util.files import writing

mpl.use("svg")
from matplotlib import pyplot as plt

mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 9})
RECORDS = HERE / "records" / "figures.jsonl"
OUT = DOCS / "assets" / "figures"
CONCEPT = "church"
Fields = dict[str, Any]
Row = dict[str, Any]
PLAN = read_bench("methods").plan  # prompts and seeds of the table of methods
SCORES = {"target": "church, by its name", "implicit": "church, by keywords", "unprotected": "others, not preserved"}


@cache
def mini() -> tuple[Model, dict[str, Concept]]:
    """Load the model and its concepts once."""
    return Model.load("mini"), table("mini")


def row(figure: str, label: str, method: str, fields: Fields, then: Callable[[Edit], Edit] = lambda e: e) -> Row:
    """Return the record of one setting; trains and judges when it is not on record yet. Trained edits are kept."""
    model, known = mini()
    concept, settings = known[CONCEPT], all_fields(method, fields)
    asked = (figure, label, settings, model.id)
    for one in records():
        if "fields" in one and (one["figure"], one["label"], one["fields"], one["profile"]["model_id"]) == asked:
            return one
    edit = then(trained(method, fields))
    result = evaluate(model, edit, concept, known, judge("mini"), PLAN)
    named = {c.name for c in preserved(concept, known)}
    others = [v.after for k, v in result.singles.items() if v.group == "unrelated" and k not in named]
    left_out = sum(others, Share(hits=0, n=0))
    likeness = result.mean("ssim", "unrelated")
    assert likeness is not None
    made: Row = {
        **({"with_key": share_with_key(fields)} if method == "kpop" else {}),
        "figure": figure,
        "label": label,
        "method": method,
        "fields": settings,
        "groups": {k: side(v.after) for k, v in result.summaries.items()} | {"unprotected": side(left_out)},
        "ssim": {"mean": likeness.value, "se": likeness.error, "n": likeness.n},
        "training": edit.meta.get("training", {}),
        "profile": {
            **result.evaluator.model_dump(),
            **result.sampling.model_dump(mode="json"),
            "model_id": result.model.id,
        },
        "git": git(),
    }
    add(made)
    print(f"{figure} {label}: " + ", ".join(f"{k} {made['groups'][k]['top1']:.2f}" for k in SCORES), flush=True)
    return made


def side(share: Share) -> Row:
    """Return a share as figures.jsonl has it."""
    return {"top1": share.value, "n": share.n, "ci95": list(share.interval)}


def trained(method: str, fields: Fields) -> Edit:
    """Erase the concept with the preset for mini and some fields of its own; found again when it was done before."""
    path = place(method, fields)
    if not path.exists():
        model, known = mini()
        concept = known[CONCEPT]
        edit, by_products = made_of(method, fields).run(model, concept, preserved(concept, known), seed=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, one in by_products.items():
            one.save(path.with_suffix(f".{name}.safetensors"))
        edit.save(path)
    return Edit.load(path)


def made_of(method: str, fields: Fields) -> Any:
    """Return a method with its preset for mini and some fields of its own."""
    return registry.get("methods", method).preset("mini", **fields)


def all_fields(method: str, fields: Fields) -> Fields:
    """Return all fields of a setting as records hold them."""
    return json.loads(json.dumps(registry.to_json(made_of(method, fields))["fields"]))


def place(method: str, fields: Fields) -> Path:
    """Return where the edit of a setting is kept, its key beside it: one file for each setting and model."""
    text = json.dumps([mini()[0].id, all_fields(method, fields)], sort_keys=True)
    return FOLDER / "figures" / f"{method}-{sha256(text.encode()).hexdigest()[:16]}.safetensors"


def drawn_with_key(fields: Fields, queries: Sequence[Query]) -> Tensor:
    """Return images (n, 3, h, w) of KPOP's sanitized model with the key to it."""
    edit = trained("kpop", fields)  # and with it its key, where there was none
    key = Edit.load(place("kpop", fields).with_suffix(".key.safetensors"))
    with edit.applied(mini()[0]) as sanitized:
        return unlocked(sanitized, key).generate(queries)


def share_with_key(fields: Fields) -> Row:
    """Return the share of images of the concept, drawn with the key, that the judge takes for it."""
    queries = [Query(mini()[1][CONCEPT].texts[0], seed, **PLAN.sampling) for seed in range(24)]
    judging = judge("mini")
    named = judging.objects(drawn_with_key(fields, queries)).argmax(1) == judging.classes.index(CONCEPT)
    hits = int(named.sum())
    return {"top1": hits / len(named), "n": len(named), "ci95": wilson(hits, len(named))}


def records() -> list[Row]:
    """Read the records on disk."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def add(one: Row) -> None:
    """Append a record in one write, so that two figures can be made at once."""
    with open(RECORDS, "ab", buffering=0) as file:
        file.write((json.dumps(one) + "\n").encode())


def trained_only(label: str, fields: Fields) -> Row:
    """Return what a training of KPOP reports of its prompt, from the record where it is there; nothing is judged."""
    model, known = mini()
    settings = all_fields("kpop", fields)
    for one in records():
        if (one["figure"], one.get("fields"), one["profile"]["model_id"]) == ("kpop-prompt", settings, model.id):
            return one["training"]
    edit, _ = made_of("kpop", fields).run(model, known[CONCEPT], seed=0)
    report = {key: edit.meta["training"][key] for key in ("restored", "similarity", "prompt_moved")}
    about = {"fields": settings, "training": report, "profile": {"model_id": model.id}, "git": git()}
    add({"figure": "kpop-prompt", "label": label, "method": "kpop", **about})
    print(f"kpop-prompt {label}: moved {report['prompt_moved']:.3g}", flush=True)
    return report


def save(figure: Any, name: str) -> None:
    """Write a drawing."""
    with writing(OUT / f"{name}.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def bars(rows: Sequence[Row], name: str, title: str) -> None:
    """Draw scores of several settings beside each other."""
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    if all("with_key" in r for r in rows):
        axes.plot(range(len(rows)), [r["with_key"]["top1"] for r in rows], "C0*", ms=9, label="church, with the key")
    for i, (group, text) in enumerate(SCORES.items()):
        at = [x + 0.27 * (i - 1) for x in range(len(rows))]
        axes.bar(at, [r["groups"][group]["top1"] for r in rows], 0.25, label=text)
    axes.plot(range(len(rows)), [r["ssim"]["mean"] for r in rows], "k_", ms=14, mew=2, label="SSIM, unrelated")
    axes.set_xticks(range(len(rows)), [r["label"] for r in rows])
    axes.set(ylim=(0, 1.05), title=title, ylabel="share of images judged so")
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    save(figure, name)


def lines(rows: Sequence[Row], xs: Sequence[float], name: str, label: str, title: str) -> None:
    """Draw scores against a setting."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for group, text in SCORES.items():
        axes.plot(xs, [r["groups"][group]["top1"] for r in rows], marker="o", ms=3, label=text)
    if all("with_key" in r for r in rows):
        axes.plot(
            xs, [r["with_key"]["top1"] for r in rows], "--", marker="o", ms=3, color="C0", label="church, with the key"
        )
    axes.plot(xs, [r["ssim"]["mean"] for r in rows], marker="o", ms=3, color="k", label="SSIM, unrelated")
    axes.set(ylim=(-0.03, 1.05), title=title, xlabel=label)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=-0.01)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    save(figure, name)
