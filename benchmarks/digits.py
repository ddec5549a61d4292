"""The digits experiment: sampling speed by threads, and the records of a run brought together.

for part in table1 search inversion; do python -m experiments.digits $part --folder digits; done
python -m benchmarks.digits --folder digits       # writes records/digits.json
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from efface.edits.provenance import git, versions
from experiments.digits.experiment import QUERY, Experiment
from experiments.network import bfloat16

RECORD = Path(__file__).parent / "records" / "digits.json"


def speed(experiment: Experiment, threads: int, steps: int, count: int = 512, runs: int = 3) -> dict[str, Any]:
    """Return images per second of `Model.generate`, median of some runs after one that is not counted."""
    torch.set_num_threads(threads)
    queries = [replace(QUERY, prompt="3", seed=seed, steps=steps) for seed in range(count)]
    times = []
    with bfloat16():
        for _ in range(runs + 1):
            began = time.perf_counter()
            experiment.original.generate(queries, 256)
            times.append(time.perf_counter() - began)
    rate = count / statistics.median(times[1:])
    return {"threads": threads, "steps": steps, "images_per_second": round(rate, 1), "n": count, "git": git()}


def known_speed(path: Path) -> list[dict[str, Any]]:
    """Return the speeds on record, each with the version it was measured with."""
    record = json.loads(path.read_text()) if path.is_file() else {"speed": []}
    return [{"git": record["git"], **row} for row in record["speed"]]


def main() -> None:
    """Measure and collect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("digits"))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="none: leave the speeds on record")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    experiment = Experiment(folder=options.folder)
    rows = [speed(experiment, threads, steps) for threads in options.threads for steps in (2, QUERY.steps)]
    rows = rows or known_speed(options.out)
    records = {path.stem: json.loads(path.read_text()) for path in sorted(options.folder.glob("*-*.json"))}
    about = {"versions": versions(), "git": git(), "processor": platform.processor() or platform.machine()}
    options.out.write_text(json.dumps({"speed": rows, "records": records, **about}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
