"""UCE, ESD-x, the negative prompt and SLD-max on ten objects and three styles of mini, judged before and after.

Half of the other concepts of the same kind are kept, so that the other half shows what is not protected.
One JSON line a job in records/first_methods.jsonl; a stopped run goes on where it was. About an hour on two cores.

    python benchmarks/first_methods.py [--only METHOD] [--threads N] [--table]
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from efface import registry
from efface.concept import Concept, table
from efface.demo import keeps
from efface.evaluate import evaluate
from efface.judge import judge
from efface.model import Model
from efface.plan import Plan
from efface.provenance import git
from efface.stats import wilson

OBJECTS = ("church", "dog", "truck", "gas pump", "parachute", "trumpet", "beer", "pistol", "apple", "guitar")
STYLES = ("neon", "sketch", "pixel")
METHODS = {"uce": "mini", "negative": "", "sld": "max", "esd": "mini"}
PLAN = Plan(
    steps=12, seeds=(0, 1, 2, 3), near=tuple(range(8)), focus=tuple(range(24)), hints=(0, 1, 2), styled=(0, 1, 2)
)
RECORDS = Path(__file__).parent / "records" / "first_methods.jsonl"


def jobs(only: str) -> list[tuple[str, str]]:
    """Return (method, concept) of what is not yet on record."""
    done = {(r["method"], r["result"]["concept"]) for r in records()}
    every = [(m, c) for m in sorted(METHODS, key="esd".__eq__) for c in (*OBJECTS, *STYLES)]  # the slow one last
    return [(m, c) for m, c in every if (m, c) not in done and only in ("", m)]


def records() -> list[dict[str, Any]]:
    """Read the records on disk."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def run(method: str, name: str, model: Model, known: dict[str, Concept]) -> dict[str, Any]:
    """Erase one concept with one method and judge it."""
    concept = known[name]
    began = time.perf_counter()
    edit = registry.get("methods", method).preset(METHODS[method])(model, [concept], keeps(concept, known), seed=0)
    seconds = time.perf_counter() - began
    result = evaluate(model, edit, concept, known, judge("mini"), PLAN)
    meta = {k: v for k, v in edit.meta.items() if k in ("method", "fields", "preset", "seed", "versions")}
    return {"method": method, "seconds": round(seconds, 2), "result": result, "edit": meta, "git": git()}


def pooled(rows: list[dict[str, Any]]) -> str:
    """Return the table: per method, objects and styles apart, proportions pooled over concepts with intervals."""
    lines = ["| erased | method | group | before | after | n | change |", "|---|---|---|---|---|---|---|"]
    for kind, names in (("objects", OBJECTS), ("styles", STYLES)):
        for method in METHODS:
            hits: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
            for row in rows:
                if row["method"] == method and row["result"]["concept"] in names:
                    for group, value in row["result"]["groups"].items():
                        n = value["after"]["n"]
                        for i, when in enumerate(("before", "after")):
                            hits[group][i] += value[when]["top1"] * n
                        hits[group][2] += n
            count = sum(r["method"] == method and r["result"]["concept"] in names for r in rows)
            for group, (before, after, n) in hits.items():
                if n:
                    low, high = wilson(round(after), int(n))
                    cells = f"{before / n:.3f} | {after / n:.3f} [{low:.3f}, {high:.3f}] | {int(n)}"
                    who = f"{count} of {len(names)} {kind} | {method} | {group}"
                    lines.append(f"| {who} | {cells} | {(after - before) / n:+.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the pooled table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", choices=("", *METHODS))
    parser.add_argument("--table", action="store_true", help="print the table of what is on record and stop")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(options.threads)
        model, known = Model.load("mini"), table("mini")
        RECORDS.parent.mkdir(exist_ok=True)
        for method, concept in jobs(options.only):
            record = run(method, concept, model, known)
            with open(RECORDS, "a") as file:
                file.write(json.dumps(record) + "\n")
    print(pooled(records()))


if __name__ == "__main__":
    main()
