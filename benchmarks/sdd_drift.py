"""Measure how far SDD moves the unconditional prediction, which nothing in its loss holds, beside ESD on mini.

python benchmarks/sdd_drift.py             # what is missing of records/sdd_drift.json, then the drawing
python benchmarks/sdd_drift.py --pages     # the drawing only

SDD's target is the student's own prediction for no prompt, ESD's at η = 0 the frozen model's: else the two are alike.
Drift is the mean of ‖ε_θ(z_t, ∅) − ε*(z_t, ∅)‖² over noised latents of another object, as a multiple of what a prompt
changes there, ‖ε*(z_t, c) − ε*(z_t, ∅)‖².
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
import torch
from _bench import DOCS, FOLDER

from efface import registry
from efface.concept import table
from efface.edits.edit import Edit
from efface.edits.provenance import git
from efface.models.model import Model
from efface.query import Query
from efface.util.files import writing

mpl.use("svg")
from matplotlib import pyplot as plt

mpl.rcParams.update({"svg.hashsalt": "efface", "font.size": 9})
RECORD = Path(__file__).parent / "records" / "sdd_drift.json"
CONCEPT, OTHER = "cat", "guitar"
STEPS = (20, 40, 60, 80, 100, 130)
TIMES = (250, 500, 750)
IMAGES = 16
RATE = {"lr": 1e-4}
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "SDD": ("sdd", RATE),
    "ESD, η 0": ("esd", RATE | {"eta": 0.0}),
    "ESD, η 1": ("esd", RATE | {"eta": 1.0}),
}


def trained(model: Model, method: str, fields: dict[str, Any]) -> Edit:
    """Return the edit of one setting; it is kept outside git."""
    text = "-".join(f"{key}={value:g}" for key, value in sorted(fields.items()))
    path = FOLDER / "drift" / f"{model.id[:12]}-{method}-{text}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        known = table("mini")
        registry.get("methods", method).preset("mini", **fields)(model, [known[CONCEPT]], [], 0).save(path)
    return Edit.load(path)


@torch.no_grad()
def drift(model: Model, edit: Edit) -> dict[str, float]:
    """Return how far an edit moves ε(∅) and ε(c), and how far the two are apart, as multiples of what c changes."""
    rng = torch.Generator().manual_seed(0)
    clean = model.sample([Query(table("mini")[OTHER].texts[0], seed, steps=8) for seed in range(IMAGES)])
    null, prompt = model.null(), model.encode([table("mini")[CONCEPT].texts[0]])
    sums = dict.fromkeys(("unconditional", "conditional", "apart", "unit"), 0.0)
    with edit.applied(model) as edited:
        for t in TIMES:
            alpha, sigma = model.levels(t)
            z = alpha * clean + sigma * torch.randn(clean.shape, generator=rng)
            before, after = ([one.eps(z, t, c) for c in (null, prompt)] for one in (model, edited))
            sums["unconditional"] += float((after[0] - before[0]).square().mean())
            sums["conditional"] += float((after[1] - before[1]).square().mean())
            sums["apart"] += float((after[1] - after[0]).square().mean())
            sums["unit"] += float((before[1] - before[0]).square().mean())
    return {name: value / sums["unit"] for name, value in sums.items() if name != "unit"}


def measure() -> None:
    """Add what is missing to the record."""
    model = Model.load("mini")
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    if any(row["model"] != model.id for row in found):
        found = []
    for label, (method, fields) in CURVES.items():
        for steps in STEPS:
            if any((row["curve"], row["steps"]) == (label, steps) for row in found):
                continue
            all_fields = fields | {"steps": steps}
            row = {"curve": label, "method": method, "fields": all_fields, "steps": steps, "model": model.id}
            row |= drift(model, trained(model, method, all_fields)) | {"git": git()}
            print(label, steps, f"{row['unconditional']:.3g}", flush=True)
            found.append(row)
            with writing(RECORD) as path:
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def draw() -> None:
    """Draw the record."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for label in CURVES:
        own = [row for row in rows if row["curve"] == label]
        for axis, name in zip(axes, ("unconditional", "apart"), strict=True):
            axis.plot([row["steps"] for row in own], [row[name] for row in own], marker="o", ms=3, label=label)
    axes[0].set(xlabel="steps", yscale="log", title="‖ε(∅) − ε*(∅)‖²", ylabel="multiple of ‖ε*(c) − ε*(∅)‖²")
    axes[1].set(xlabel="steps", title="‖ε(c) − ε(∅)‖², what SDD makes small")
    axes[0].legend(fontsize=7)
    with writing(DOCS / "assets" / "figures" / "sdd_drift.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="only draw what is on record")
    torch.set_num_threads(1)
    if not parser.parse_args().pages:
        measure()
    draw()


if __name__ == "__main__":
    main()
