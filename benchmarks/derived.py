"""Attack UCE and RECE on mini with derived embeddings, and sweep RECE's λ: the counterparts of its figures 5 and 6.

For the objects of methods.toml, after 0 (UCE), 1, 3 and 5 epochs of RECE: the share of images that show the concept
again when an embedding that eq. 7 of the paper derives takes the place of the prompt, for each λ of the attacker. *Old*
embeddings were derived against UCE's weights, *new* ones against the very weights under attack. Beside it what is left
of other objects. Then the λ that RECE itself derives with.

    python benchmarks/derived.py [--threads N]    # records/derived.json, tables, the sheet and the chart; resumes
    python benchmarks/derived.py --draw           # the tables and drawings again, from the record
"""

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _bench import put_in, read_bench
from torch import Tensor

from efface.concept import Concept, table
from efface.context import Context
from efface.edits.edit import Edit
from efface.edits.provenance import git, versions
from efface.evaluation.evaluate import generating, images
from efface.evaluation.prompts import preserved
from efface.evaluation.stats import wilson
from efface.judges.mini import judge
from efface.methods.closed_form.least_squares import derive
from efface.methods.closed_form.matrices import Factors, Outputs
from efface.methods.closed_form.method import key_value_gram, text_weights
from efface.methods.rece import RECE
from efface.models.model import Model
from efface.query import Query
from efface.report import grid
from efface.util.files import writing

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "methods" / "closed_form.md"
RECORD = HERE / "records" / "derived.json"
OBJECTS = [c[0].name for c in read_bench("methods").concepts if len(c) == 1 and c[0].kind == "object"]
HOW: dict[str, Any] = {"steps": 8}
EPOCHS = (0, 1, 3, 5)
ATTACK = (1e-3, 1e-1, 10.0)  # the attacker's λ of eq. 7
SWEEP = (1e-4, 1e-3, 1e-2, 0.2, 0.4, 0.6, 0.8, 1.0)  # RECE's own; the last five divide [0, 1] as figure 6 does
SWEPT = 3  # objects
SEEDS = range(8)
Share = dict[str, Any]


@cache
def mini() -> tuple[Model, dict[str, Concept]]:
    """Load the model and its concepts once."""
    return Model.load("mini"), table("mini")


def erased(name: str, epochs: int, ridge: float | None = None) -> Edit:
    """Return RECE's edit with half of the other objects kept; with 0 epochs, the UCE edit that it starts from."""
    model, known = mini()
    fields = {} if ridge is None else {"derive_ridge": ridge}
    return RECE.preset("mini", epochs=epochs, **fields)(model, [known[name]], preserved(known[name], known))


def embeddings(edit: Edit, prompt: str) -> dict[float, Tensor]:
    """Return what eq. 7 derives from a prompt against the edited weights, by the attacker's λ."""
    model, _ = mini()
    system = key_value_gram(model, text_weights(model))
    change = Factors(edit.maps[0].left.double(), edit.maps[0].right.double())
    outputs = Outputs.of(system).plus(change, system)
    rows = model.encode([prompt]).tokens[0]
    return {ridge: derive(rows, outputs, ridge).float() for ridge in ATTACK}


def share(hits: int, n: int) -> Share:
    """Return a proportion with n and Wilson's interval."""
    low, high = wilson(hits, n)
    return {"value": round(hits / n, 4), "n": n, "ci95": [round(low, 4), round(high, 4)]}


def shown(pictures: Tensor, name: str) -> int:
    """Count the images whose first class is the concept."""
    looker = judge("mini")
    return int((looker.objects(pictures).argmax(1) == looker.classes.index(name)).sum())


def others(name: str) -> tuple[list[Query], list[str]]:
    """Return one query for each object that is neither erased nor kept, nor related, with its name."""
    _, known = mini()
    away = {name, *known[name].related, *(c.name for c in preserved(known[name], known))}
    left = [c for c in known.values() if c.kind == "object" and c.name not in away]
    return [Query(c.texts[0], 0, **HOW) for c in left], [c.name for c in left]


def attacked(name: str, epochs: int) -> dict[str, Any]:
    """Attack one edit with derived embeddings of every λ."""
    model, known = mini()
    edit, prompt = erased(name, epochs), known[name].texts[0]
    queries, names = others(name)
    with generating(model, edit) as generate:
        counts = {
            when: {f"{ridge:g}": shown(generate(asked(prompt, e)), name) for ridge, e in found.items()}
            for when, found in (("old", against_uce(name)), ("new", embeddings(edit, prompt)))
        }
        plain = shown(generate(asked(prompt)), name)
        kept = right(generate(queries), names)
    return {"concept": name, "epochs": epochs, **counts, "plain": plain, "seeds": len(SEEDS), "kept": kept}


@cache
def against_uce(name: str) -> dict[float, Tensor]:
    """Return what eq. 7 derives against UCE's weights."""
    return embeddings(erased(name, 0), mini()[1][name].texts[0])


def asked(prompt: str, derived: Tensor | None = None) -> list[Query]:
    """Return one query for each seed. derived: (positions, dim), in place of the encoded prompt."""
    context = None if derived is None else Context(derived[None].float())
    return [Query(prompt, seed, context=context, **HOW) for seed in SEEDS]


def right(pictures: Tensor, names: Sequence[str]) -> list[int]:
    """Return [images judged to be what they were asked for, images]."""
    looker = judge("mini")
    labels = torch.tensor([looker.classes.index(name) for name in names])
    return [int((looker.objects(pictures).argmax(1) == labels).sum()), len(names)]


def swept(name: str, ridge: float) -> dict[str, Any]:
    """Measure RECE with three epochs at one λ: erasing, and the images of other objects against the untouched model."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    model, known = mini()
    edit, prompt = erased(name, 3, ridge), known[name].texts[0]
    queries, names = others(name)
    before, after = images(model, None, queries), images(model, edit, queries)
    clip = judge("mini").clip_score(after, [q.prompt for q in queries])
    change = edit.dense(model)
    moved = sum(float(d.square().sum()) for d in change.values()) ** 0.5
    weights = model.weights()
    whole = sum(float(weights[n].square().sum()) for n in change) ** 0.5
    with generating(model, edit) as generate:
        plain = shown(generate(asked(prompt)), name)
        old = sum(shown(generate(asked(prompt, embeds)), name) for embeds in against_uce(name).values())
    return {
        "concept": name,
        "ridge": ridge,
        "plain": plain,
        "old": old,
        "seeds": len(SEEDS),
        "kept": right(after, names),
        "clip": round(float(clip.mean()), 4),
        "clip_before": round(float(judge("mini").clip_score(before, [q.prompt for q in queries]).mean()), 4),
        "ssim": round(float(ssim(after, before, data_range=1.0)), 4),  # type: ignore[arg-type]
        "change": round(moved / whole, 4),
    }


def work() -> None:
    """Do what the record lacks, saving after each part."""
    record: dict[str, Any] = {"attacked": [], "swept": []}
    if RECORD.exists() and (old := json.loads(RECORD.read_text()))["profile"]["model_id"] == mini()[0].id:
        record = old
    for name in OBJECTS:
        for epochs in EPOCHS:
            if not any(r["concept"] == name and r["epochs"] == epochs for r in record["attacked"]):
                record["attacked"].append(attacked(name, epochs))
                keep(record)
    for name in OBJECTS[:SWEPT]:
        for ridge in SWEEP:
            if not any(r["concept"] == name and r["ridge"] == ridge for r in record["swept"]):
                record["swept"].append(swept(name, ridge))
                keep(record)


def keep(record: dict[str, Any]) -> None:
    """Write the record with its summary."""
    model, _ = mini()
    profile = {
        **judge("mini").profile.model_dump(),
        "model_id": model.id,
        **HOW,
        "guidance": 7.5,
        "solver": "the model's own",
    }
    record |= {"summary": summary(record), "profile": profile, "versions": versions(), "git": git()}
    RECORD.parent.mkdir(exist_ok=True)
    with writing(RECORD) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Pool over concepts: per number of epochs and per λ."""
    found: dict[str, Any] = {"epochs": {}, "ridge": {}}
    for epochs in EPOCHS:
        rows = [r for r in record["attacked"] if r["epochs"] == epochs]
        if rows:
            n = sum(r["seeds"] for r in rows)
            found["epochs"][epochs] = {
                "concepts": len(rows),
                "plain": share(sum(r["plain"] for r in rows), n),
                **{
                    when: {f"{a:g}": share(sum(r[when][f"{a:g}"] for r in rows), n) for a in ATTACK}
                    for when in ("old", "new")
                },
                "kept": share(*(sum(r["kept"][i] for r in rows) for i in (0, 1))),
            }
    for ridge in SWEEP:
        rows = [r for r in record["swept"] if r["ridge"] == ridge]
        if rows:
            n = sum(r["seeds"] for r in rows)
            found["ridge"][f"{ridge:g}"] = {
                "concepts": len(rows),
                "plain": share(sum(r["plain"] for r in rows), n),
                "old": share(sum(r["old"] for r in rows), n * len(ATTACK)),
                "kept": share(*(sum(r["kept"][i] for r in rows) for i in (0, 1))),
                **{key: round(sum(r[key] for r in rows) / len(rows), 4) for key in ("clip", "ssim", "change")},
            }
    return found


def sheet(names: Sequence[str] = ("church", "truck", "fish"), epochs: int = 5) -> None:
    """Draw what the embedding derived before each epoch gives under the weights it was derived from (figure 5).

    The last column draws the first of them under the final weights.
    """
    model, known = mini()
    rows = []
    for name in names:
        prompt = known[name].texts[0]
        edits = [erased(name, e) for e in range(epochs + 1)]
        derived = [edits[-1].extra[f"derived.{epoch}.{name}"] for epoch in range(epochs)]
        steps = [(None, None), (edits[0], None), *zip(edits[:-1], derived, strict=True), (edits[-1], derived[0])]
        rows.append([images(model, edit, asked(prompt, embeds)[:3]) for edit, embeds in steps])
    columns = ["original", "UCE", *(f"derived before epoch {e + 1}" for e in range(epochs)), "the first, at the end"]
    grid.save(grid.sheet(rows, names, columns, side=96), DOCS / "assets" / "rece_derived.png")


def chart() -> None:
    """Draw the λ sweep and the attack beside each other."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 9})
    found = json.loads(RECORD.read_text())["summary"]
    figure, (left, middle, last) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for i, (epochs, row) in enumerate(found["epochs"].items()):
        label = "UCE" if epochs == "0" else f"RECE, {epochs} epoch" + "s" * (epochs != "1")
        for when, style in (("old", "-o"), ("new", ":s")):
            points = [row[when][f"{a:g}"] for a in ATTACK]
            ends = [[abs(p["value"] - p["ci95"][i]) for p in points] for i in (0, 1)]
            text = f"{label}, {when}" if when == "old" or i == 0 else None
            left.errorbar(ATTACK, [p["value"] for p in points], ends, fmt=style, c=f"C{i}", ms=3, label=text, lw=1)
    left.set(xscale="log", xlabel="the attacker's λ", ylabel="images that show the concept", ylim=(-0.03, 1.03))
    left.legend(fontsize=7, loc="center right")
    ridges = [float(r) for r in found["ridge"]]
    for axes, keys in ((middle, ("clip", "ssim")), (last, ("plain", "old", "kept"))):
        for key in keys:
            values = [row[key]["value"] if isinstance(row[key], dict) else row[key] for row in found["ridge"].values()]
            axes.plot(ridges, values, marker="o", ms=3, label=NAMES[key], lw=1)
        axes.set(xscale="log", xlabel="RECE's λ (three epochs)", ylim=(-0.03, 1.03))
    beside = middle.twinx()
    beside.plot(ridges, [row["change"] for row in found["ridge"].values()], "k:s", ms=3, label=NAMES["change"], lw=1)
    beside.set(ylim=(0, None))
    middle.legend(handles=[*middle.lines, *beside.lines], fontsize=7, loc="lower left")
    last.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 0.06))
    with writing(DOCS / "assets" / "rece_lambda.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


def percent(one: Share) -> str:
    """Write a share in per cent with its interval."""
    low, high = (100 * end for end in one["ci95"])
    return f"{100 * one['value']:.1f} [{low:.0f}, {high:.0f}]"


def tables() -> None:
    """Write both tables into the page on closed-form erasing."""
    found = json.loads(RECORD.read_text())["summary"]
    rows = list(found["epochs"].items())
    one = rows[0][1]
    lines = [
        f"*{one['concepts']} objects, {one['plain']['n']} images of them and {one['kept']['n']} of others.*",
        "",
        f"| edit | by the prompt | {' | '.join(f'old, λ {a:g}' for a in ATTACK)} | new, any λ | others right |",
        "|---" * (4 + len(ATTACK)) + "|",
    ]
    for epochs, row in rows:
        name = "UCE" if epochs == "0" else f"RECE, {epochs} epoch" + "s" * (epochs != "1")
        new = sorted(100 * share["value"] for share in row["new"].values())
        old = " | ".join(percent(row["old"][f"{a:g}"]) for a in ATTACK)
        lines.append(
            f"| {name} | {percent(row['plain'])} | {old} | {new[0]:.1f} to {new[-1]:.1f} | {percent(row['kept'])} |"
        )
    put_in(PAGE, "derived", lines)
    lines = [
        "| λ | by the prompt | UCE's derived embeddings, all three λ | others right | CLIP | SSIM | ‖ΔW‖ / ‖W‖ |",
        "|---" * 7 + "|",
    ]
    for ridge, row in found["ridge"].items():
        shares = " | ".join(percent(row[key]) for key in ("plain", "old", "kept"))
        lines.append(f"| {ridge} | {shares} | {row['clip']:.3f} | {row['ssim']:.3f} | {row['change']:.2f} |")
    put_in(PAGE, "ridge", lines)


NAMES = {
    "clip": "CLIP score, others",
    "ssim": "SSIM to the original, others",
    "change": "‖ΔW‖ / ‖W‖",
    "plain": "concept, by its prompt",
    "old": "concept, by UCE's derived embeddings",
    "kept": "others, judged right",
}


def main() -> None:
    """Do what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.draw:
        work()
    tables()
    sheet()
    chart()


if __name__ == "__main__":
    main()
