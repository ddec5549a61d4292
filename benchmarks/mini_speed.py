"""Sampling speed of mini: images per second by solver, steps and precision, with judged accuracy beside it.

The baseline of the ratio is the diffusers pipeline itself, on the same prompts, in the same run.

    python benchmarks/mini_speed.py            # about three minutes on two cores; writes records/mini_speed.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efface.concept import table
from efface.edits.provenance import git, versions
from efface.judges.mini import judge
from efface.models.model import Model, Query

RECORD = Path(__file__).parent / "records" / "mini_speed.json"
PROMPTS = [c.fill("a picture of a {}") for c in table("mini").values() if c.kind != "style"]


def seconds(call: Callable[[], Any], runs: int) -> float:
    """Return the median seconds of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def accuracy(images: torch.Tensor) -> float:
    """Return the object judge's top-1 on one image per object."""
    return float((judge("mini").objects(images).argmax(1) == torch.arange(len(images))).float().mean())


def measure(model: Model, solver: str, steps: int, runs: int) -> dict[str, Any]:
    """Time one setting on a batch of one image an object, and judge it."""
    queries = [Query(p, 0, steps=steps, solver=solver) for p in PROMPTS]
    drawn: list[torch.Tensor] = []
    took = seconds(lambda: drawn.append(model.generate(queries, batch=len(PROMPTS))), runs)
    judged = accuracy(drawn[-1])
    return {"images_per_second": round(len(PROMPTS) / took, 2), "top1": round(judged, 4), "n": len(PROMPTS)}


def baseline(model: Model, steps: int, runs: int) -> float:
    """Return images per second of `StableDiffusionPipeline` with DDIM, in one batch."""
    from diffusers import DDIMScheduler

    model.pipe.scheduler = DDIMScheduler.from_config(model.pipe.scheduler.config)
    draw = lambda: model.pipe(PROMPTS, num_inference_steps=steps, output_type="pt")  # noqa: E731
    return len(PROMPTS) / seconds(draw, runs)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    Model.load("mini")
    first = time.perf_counter() - began
    load = seconds(lambda: Model.load("mini"), options.runs)
    rows: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = Model.load("mini", dtype=dtype)
        for solver, steps in (("ddim", 20), ("dpm++", 20), ("dpm++", 12), ("dpm++", 8)):
            rows[f"{name} {solver} {steps}"] = found = measure(model, solver, steps, options.runs)
            print(f"{name} {solver} {steps}: {found}", flush=True)
    plain = baseline(Model.load("mini"), 20, options.runs)
    record = {
        "rows": rows, "load_seconds": round(load, 2), "load_seconds_with_imports": round(first, 2),
        "baseline": {"what": "StableDiffusionPipeline, DDIM, 20 steps, fp32", "images_per_second": round(plain, 2)},
        "ratio": round(rows["fp32 ddim 20"]["images_per_second"] / plain, 3),
        "threads": options.threads, "batch": len(PROMPTS), "guidance": 7.5, "processor": platform.processor() or
        platform.machine(), "versions": versions(), "git": git(),
    }  # fmt: skip
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
