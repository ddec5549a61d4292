"""The digits experiment: sampling speed by threads, and the records of a run brought together.

for part in table1 search inversion bound; do python -m experiments.digits $part --folder digits; done
python -m benchmarks.digits --folder digits            # writes records/digits.json
python -m benchmarks.digits --folder more --add        # adds to it what another folder holds, in place of the same
"""

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from efface.edits.provenance import git, versions
from efface.evaluation.record import Aggregate, Record, Scored
from efface.evaluation.summary import Summary
from experiments.digits.experiment import MODELS, QUERY, Experiment
from experiments.digits.records import Archive, Experimented, Kind, Speed, experiments, read, write
from experiments.network import bfloat16

RECORD = Path(__file__).parent / "records" / "digits.json"


def speed(experiment: Experiment, threads: int, steps: int, count: int = 512, runs: int = 3) -> Speed:
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
    return Speed(threads=threads, steps=steps, images_per_second=round(rate, 1), n=count, git=git())


def counted(record: Record | Aggregate) -> Aggregate:
    """Return a record of table 1 with counts in place of its rows, of which there are thousands."""
    if isinstance(record, Aggregate):
        return record
    about = {name: getattr(record, name) for name in Scored.model_fields}
    groups = {name: record.summaries[name] for name in ("target", "unrelated")}
    classes = {
        name: Summary(**{key: getattr(one, key) for key in Summary.model_fields})
        for name, one in record.singles.items()
        if one.group != "target"
    }
    return Aggregate(**about, note="counts of the rows of a run; a class has its own name", groups=groups | classes)


def added(old: Sequence[Experimented], new: Sequence[Experimented]) -> tuple[Experimented, ...]:
    """Return experiments with others added: of the same class and seed, new models and searches replace old ones."""
    found = {(one.dataset, one.target, one.seed): one for one in old}
    for one in new:
        where = (one.dataset, one.target, one.seed)
        if where in found:
            before, rows = found[where], {row.name: row for row in (*found[where].table1, *one.table1)}
            searches = before.searches
            for kind in get_args(Kind):
                searches = searches.with_(kind, {**searches.of(kind), **one.searches.of(kind)})
            table1 = tuple(rows[name] for name in MODELS if name in rows)
            one = before.model_copy(
                update={"lengths": one.lengths or before.lengths, "table1": table1, "searches": searches}
            )
        found[where] = one
    return tuple(found.values())


def main() -> None:
    """Measure and collect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("digits"))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="none: leave the speeds on record")
    parser.add_argument("--add", action="store_true", help="keep what is on record beside it")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    experiment = Experiment(folder=options.folder)
    rows = tuple(speed(experiment, threads, steps) for threads in options.threads for steps in (2, QUERY.steps))
    rows = rows or read(Archive, options.out).speed
    found = tuple(
        one.model_copy(update={"table1": tuple(map(counted, one.table1))}) for one in experiments(options.folder)
    )
    found = added(read(Archive, options.out).experiments, found) if options.add else found
    processor = platform.processor() or platform.machine()
    whole = Archive(speed=rows, experiments=found, versions=versions(), git=git(), processor=processor)
    write(whole, options.out, indent=None)  # table 1 names thousands of seeds
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
