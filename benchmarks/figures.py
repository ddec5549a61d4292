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
from collections.abc import Callable, Mapping

import torch
from _bench import DOCS, put_in
from _figures import (
    CONCEPT,
    OUT,
    PLAN,
    Fields,
    add,
    bars,
    drawn_with_key,
    lines,
    mini,
    plt,
    records,
    row,
    save,
    trained,
    trained_only,
)

from efface.edits.provenance import git
from efface.evaluation.evaluate import images
from efface.evaluation.stats import wilson
from efface.judges.mini import judge
from efface.models.model import Model
from efface.models.purification import purify
from efface.query import Query
from efface.report import grid

PAGE = DOCS / "methods" / "finetuning.md"
SHORT = 60  # steps of a training that is looked at and not judged


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
