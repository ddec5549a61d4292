"""Redraw figures of the papers in miniature: one concept of mini, one name each, resumable; two can run at once.

python benchmarks/figures.py kpop-prompt       # KPOP: how far the prompt moves, by its first size and rate; a table
python benchmarks/figures.py kpop-training     # KPOP, figure 4: the prompt's similarity to texts along training
python benchmarks/figures.py kpop-mechanism    # KPOP, table 5: concatenated or added, and the prompt's size k
python benchmarks/figures.py kpop-where        # KPOP, table 6: the blocks that read the prompt
python benchmarks/figures.py kpop-lambda       # KPOP, figure 5
python benchmarks/figures.py kpop-key          # KPOP, section 5.6.4: the sanitized model with its key
python benchmarks/figures.py surgical-lambda   # All but One, figures 6 and 9: λ against erasing and SSIM
python benchmarks/figures.py surgical-signal   # All but One: explicit and implicit δ
python benchmarks/figures.py purification      # All but One, figure 10: a concept taken out of given pictures
python benchmarks/figures.py task-vector       # task vectors, figure 4: strengths and pruned sets of blocks
python benchmarks/figures.py all
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
import torch
from _bench import FOLDER, put_in, read_bench
from torch import Tensor

from efface import registry
from efface.concept import Concept, table
from efface.edits.edit import Edit
from efface.edits.provenance import git
from efface.evaluation.evaluate import evaluate, images
from efface.evaluation.prompts import preserved
from efface.evaluation.stats import wilson
from efface.evaluation.summary import Share
from efface.judges.mini import judge
from efface.models.learned_prompt import unlocked
from efface.models.model import Model
from efface.models.purification import purify
from efface.query import Query
from efface.report import grid
from efface.util.files import writing

mpl.use("svg")
from matplotlib import pyplot as plt

mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 9})
HERE = Path(__file__).parent
RECORDS = HERE / "records" / "figures.jsonl"
OUT = HERE.parent / "docs" / "assets" / "figures"
PAGE = HERE.parent / "docs" / "methods" / "finetuning.md"
CONCEPT = "church"
SHORT = 60  # steps of a training that is looked at and not judged
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
    key = Edit.load(place("kpop", fields).with_suffix(".key.safetensors"))
    with trained("kpop", fields).applied(mini()[0]) as sanitized:
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


def kpop_training() -> None:
    """Draw figure 4 of KPOP."""
    history = row("kpop-mechanism", "concat, k 1", "kpop", {})["training"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for key, text in (("similarity", "to the concept's text"), ("similarity_neutral", "to the neutral text")):
        left.plot(history[key], label=text)
    left.set(xlabel="step", ylabel="cosine of the prompt", title="alignment of the prompt (fig. 4a)")
    left.legend(fontsize=7)
    right.plot(history["restored"], color="C2")
    right.set(xlabel="step", yscale="log", title="‖ε(c, p) − ε*(c)‖²")
    save(figure, "kpop_training")


def kpop_prompt() -> None:
    """Write the table of how far the prompt moves: the same random numbers in every row, z_t from the base."""
    lines = ["| first size | rate | moved | restored | cosine |", "|---" * 5 + "|"]
    for size, rate in ((1.0, 1e-9), (1.0, 1e-5), (1.0, 1e-3), (1.0, 1e-2), (0.3, 1e-2), (0.1, 1e-3)):
        scaled = {"prompt_lr": rate * 1000 / SHORT, "init": size}  # as far as in 1,000 steps
        run = trained_only(
            f"size {size:g}, rate {rate:g}", scaled | {"steps": SHORT, "batch": 1, "reuse": 1, "source": "base"}
        )
        last, cosines = run["restored"][-20:], run["similarity"]
        said = "0 (frozen)" if rate < 1e-8 else f"{rate:.0e}".replace("e-0", "e-")
        ends, moved = f"{cosines[0]:.2f}, {cosines[-1]:.2f}", "0" if rate < 1e-8 else f"{run['prompt_moved']:.2g}"
        lines.append(f"| {size:g} | {said} | {moved} | {sum(last) / len(last):.5f} | {ends} |")
    put_in(PAGE, "kpop-prompt", lines)


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


def kpop_mechanism() -> None:
    """Draw table 5 of KPOP."""
    settings: dict[str, Fields] = {
        "concat, k 1": {},
        "concat, k 5": {"size": 5},
        "concat, k 10": {"size": 10},
        "add": {"mechanism": "add", "init": 0.0},
    }
    rows = [row("kpop-mechanism", label, "kpop", fields) for label, fields in settings.items()]
    bars(rows, "kpop_mechanism", "KPOP: how the prompt comes in (table 5)")


def kpop_where() -> None:
    """Draw table 6 of KPOP."""
    places: dict[str, Fields] = {"mid": {}, **{where: {"where": where} for where in ("mid-up", "down-mid-up")}}
    rows = [row("kpop-where", where, "kpop", fields) for where, fields in places.items()]
    bars(rows, "kpop_where", "KPOP: which blocks read the prompt (table 6)")


def kpop_lambda() -> None:
    """Draw figure 5 of KPOP."""
    values = (0.0, 0.1, 1.0, 10.0)
    rows = [row("kpop-lambda", f"{v:g}", "kpop", {"lam": v}) for v in values]
    lines(rows, values, "kpop_lambda", "λ", "KPOP: keeping the concept under the prompt (fig. 5)")


def kpop_key() -> None:
    """Draw the sanitized model with its key (section 5.6.4)."""
    known, names = mini()[1], (CONCEPT, "house", "guitar")
    fields = {"lam": 1.0}
    edit = trained("kpop", fields)
    asked = [[Query(known[name].texts[0], seed, **PLAN.sampling) for seed in range(4)] for name in names]
    cells = [[images(mini()[0], e, own) for e in (None, edit)] + [drawn_with_key(fields, own)] for own in asked]
    grid.save(grid.sheet(cells, names, ["original", "KPOP", "with its key"], side=96), OUT / "kpop_key.png")


def surgical_lambda() -> None:
    """Draw figures 6 and 9 of All but One."""
    values = (0.0, 0.5, 1.0, 5.0)
    rows = [row("surgical-lambda", f"{v:g}", "surgical", {"penalty": v}) for v in values]
    lines(rows, values, "surgical_lambda", "λ", "All but One: holding the unconditional noise (fig. 6, 9)")


def surgical_signal() -> None:
    """Draw the two erasing signals of All but One beside each other: instructions, or attention turned down."""
    settings: dict[str, Fields] = {"explicit": {}, "implicit": {"signal": "implicit"}}
    rows = [row("surgical-signal", label, "surgical", fields) for label, fields in settings.items()]
    bars(rows, "surgical_signal", "All but One: explicit and implicit δ")


def purification() -> None:
    """Draw figure 10 of All but One: given pictures, inverted and drawn again by the λ = 0 model."""
    model, known = mini()
    fields = {"penalty": 0.0, "params": "x"}
    result = row("purification", "drawn anew", "surgical", fields)  # what the same edit does to what is asked for
    ways: dict[str, tuple[str, float]] = {
        "no text": ("", 1.0),
        "“church”": (CONCEPT, 1.0),
        "“church”, 7.5": (CONCEPT, 7.5),
    }
    judging, found, rows, names = judge("mini"), {}, [], (CONCEPT, "house", "guitar")
    with trained("surgical", fields).applied(model) as edited:
        for name in names:
            given = images(model, None, [Query(known[name].texts[0], s, steps=12) for s in range(12)])
            through: dict[str, tuple[Model, str, float]] = {"untouched, no text": (model, "", 1.0)}
            through |= {"untouched, " + k: (model, *v) for k, v in ways.items() if v[1] > 1}
            through |= {"purified, " + k: (edited, *v) for k, v in ways.items()}
            cells = {"given": given} | {k: purify(m, given, text, 35, g) for k, (m, text, g) in through.items()}
            named = {
                k: int((judging.objects(x).argmax(1) == judging.classes.index(name)).sum()) for k, x in cells.items()
            }
            found[name] = {k: {"hits": n, "n": len(given), "ci95": wilson(n, len(given))} for k, n in named.items()}
            rows.append([x[:4] for x in cells.values()])
    about = {
        "figure": "purification",
        "label": "given pictures",
        "judged": found,
        "profile": result["profile"],
        "git": git(),
    }
    if not any((r["label"], r["profile"]) == (about["label"], about["profile"]) for r in records()):
        add(about)
    grid.save(grid.sheet(rows, names, list(found[CONCEPT]), side=96), OUT / "purification.png")


def task_vector() -> None:
    """Draw figure 4 of the task vectors paper, without its robustness axis."""
    sets: Mapping[str, dict[str, str]] = {
        "all": {},
        "without down": {"without": "down"},
        "without mid": {"without": "mid"},
        "without up": {"without": "up"},
        "cross-attention": {"only": "attn2"},
    }
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, choice), mark in zip(sets.items(), "osD^v", strict=True):
        rows = [
            row(
                "task-vector", f"{name}, α {alpha:g}", "task_vector", {"alpha": 1.0},
                lambda e, a=alpha, c=choice: a * e.prune(**c),
            )
            for alpha in (1.0, 2.0, 3.0, 4.0)
        ]  # fmt: skip
        x = [r["groups"]["unprotected"]["top1"] for r in rows]
        y = [r["groups"]["target"]["top1"] for r in rows]
        axes.plot(x, y, marker=mark, ms=5, lw=0.7, label=name)
        for alpha, u, v in zip((1, 2, 3, 4), x, y, strict=True):
            axes.annotate(f"{alpha}", (u, v), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="others judged right", ylabel="church judged a church", title="task vectors: α and pruned blocks")
    axes.legend(fontsize=7)
    save(figure, "task_vector")


FIGURES: dict[str, Callable[[], None]] = {
    "task-vector": task_vector,
    "kpop-lambda": kpop_lambda,
    "kpop-key": kpop_key,
    "kpop-prompt": kpop_prompt,
    "kpop-training": kpop_training,
    "surgical-lambda": surgical_lambda,
    "surgical-signal": surgical_signal,
    "purification": purification,
    "kpop-mechanism": kpop_mechanism,
    "kpop-where": kpop_where,
}


def main() -> None:
    """Draw the figures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", choices=("all", *FIGURES), nargs="+")
    chosen = parser.parse_args().figures
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        if "all" in chosen or name in chosen:
            draw()


if __name__ == "__main__":
    main()
