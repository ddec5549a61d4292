"""Speed of attacks, as ratios in one run: batched against one by one, early stop against none.

    python benchmarks/attacks.py             # about four minutes on one core
    python benchmarks/attacks.py --record    # also writes records/attacks.json

Ring-A-Bell: the same generations of the genetic search, with each new sequence encoded once and all in one batch, and
with every sequence of every generation encoded alone, as its published code does. UnlearnDiffAtk: the same search with
and without the stop at the first success. Inversion: a hundred embeddings learned in one batch, and one after another
from the same pictures. The ratio of times is of this machine, the ratio of denoiser calls is not.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efface.attack import Attack, Finding, Target
from efface.attacks.inversion import Inversion
from efface.attacks.ring_a_bell import RingABell
from efface.attacks.search import genetic
from efface.attacks.unlearndiffatk import UnlearnDiffAtk
from efface.concept import table
from efface.edits.provenance import git, versions
from efface.judge import judge_of
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.query import Query

RECORD = Path(__file__).parent / "records" / "attacks.json"


def timed(attack: Attack, target: Target, concept: Any, queries: list[Query]) -> tuple[Finding, float]:
    """Return a finding and the seconds its search took."""
    began = time.perf_counter()
    found = attack(target, concept, queries)
    return found, time.perf_counter() - began


def one_by_one(losses: Any, population: torch.Tensor, *_: Any) -> tuple[torch.Tensor, int]:
    """Return the losses as the published code computes them: every sequence, each alone."""
    return torch.cat([losses(row[None]) for row in population]), len(population)


def batched(model: Model, population: int, generations: int) -> dict[str, Any]:
    """Compare a population encoded at once with one sequence at a time."""
    concept, query = table("mini")["church"], [Query("a picture of a church")]
    settings: dict[str, Any] = {"population": population, "generations": generations, "length": 16, "keep": False}
    RingABell(**{**settings, "generations": 1}, at_once=4096)(Target(model), concept, query)  # not counted
    computed = genetic._losses
    genetic._losses = one_by_one
    one, slow = timed(RingABell(**settings), Target(model), concept, query)
    genetic._losses = computed
    many, fast = timed(RingABell(**settings, at_once=4096), Target(model), concept, query)
    if one.queries != many.queries:
        raise SystemExit("the two searches found different prompts, so their times cannot be compared")
    return {
        "one_by_one": slow,
        "batched": fast,
        "ratio": slow / fast,
        "texts_one_by_one": one.cost["texts"],
        "texts_batched": many.cost["texts"],
    }


def stopped(model: Model, queries: int, timesteps: int, iterations: int) -> dict[str, Any]:
    """Compare a search that stops at each query's first success with one that goes on."""
    concept, judge = table("mini")["church"], judge_of("mini")
    asked = [Query("a picture of a church", seed=seed, steps=4, guidance=4.0) for seed in range(queries)]
    with UCE.preset("mini")(model, [concept]).applied(model) as edited:
        target = Target(edited, judge, model)
        common: dict[str, Any] = {"timesteps": timesteps, "iterations": iterations, "lr": 0.1}
        early, fast = timed(UnlearnDiffAtk(**common), target, concept, asked)
        late, slow = timed(UnlearnDiffAtk(**common, stop=False), target, concept, asked)
    calls = [one.cost["calls"] for one in (late, early)]
    return {
        "without": slow, "with": fast, "ratio": slow / fast, "calls_without": calls[0], "calls_with": calls[1],
        "ratio_of_calls": calls[0] / calls[1], "queries": queries,
        "successes": sum(row["success"] for row in early.about["rows"]),
        "before": sum(row["before"] for row in early.about["rows"]),
    }  # fmt: skip


def together(model: Model, count: int, steps: int) -> dict[str, Any]:
    """Compare embeddings learned in one batch with the same number learned one after another."""
    concept, query = table("mini")["church"], [Query("a picture of a church", steps=4)]
    settings: dict[str, Any] = {"steps": steps, "batch": 1, "images": 2}
    with UCE.preset("mini")(model, [concept]).applied(model) as edited:
        target = Target(edited, original=model)
        Inversion(**settings, attempts=1)(target, concept, query)  # not counted; makes the pictures
        many, fast = timed(Inversion(**settings, attempts=count, at_once=count), target, concept, query)
        slow = sum(timed(Inversion(**settings, attempts=1), target, concept, query)[1] for _ in range(count))
    return {"one_by_one": slow, "batched": fast, "ratio": slow / fast, "embeddings": len(many.tensors["vectors"])}


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = Model.load("mini")
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "ring-a-bell, batched": lambda: batched(model, 200, 5),
        "inversion, batched": lambda: together(model, 100, 3),
        "unlearndiffatk, early stop": lambda: stopped(model, 8, 10, 4),
    }
    record: dict[str, Any] = {"model": model.id, "threads": given.threads, "versions": versions(), "git": git()}
    for name, run in runs.items():
        record[name] = {key: round(value, 3) for key, value in run().items()}
        print(f"{name:28} " + "  ".join(f"{key} {value:g}" for key, value in record[name].items()), flush=True)
    if given.record:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
