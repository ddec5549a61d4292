"""Time closed-form erasing at the size of Stable Diffusion 1.4, and write benchmarks/records/closed_form.json.

Every case runs in a process of its own: first efface's algebra (seconds, peak memory, deviation from a plain float64
solve), then a baseline written from the formula the way published code does it. Text encoding is in neither.

    python benchmarks/closed_form.py            # all cases, one thread, about 6 minutes and 9 GB of disk
    python benchmarks/closed_form.py --quick    # small cases only, nothing recorded
    python benchmarks/closed_form.py --only rece --no-record
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES: dict[str, dict[str, Any]] = {
    "uce-2023: 1": {"erase": 1, "keep": 1, "aim": 0.1, "aim_ratio": 100},
    "uce-2023: 10": {"erase": 10, "keep": 1},
    "uce-2023: 100": {"erase": 100, "keep": 1},
    "uce-2023: 100 + 100 kept": {"erase": 100, "keep": 101},
    "uce-2023: 100 + 1,000 kept": {"erase": 100, "keep": 1001, "aim": 2.0},
    "uce-2023: 1,000 + 1,000 kept": {"erase": 1000, "keep": 1001, "aim": 10.0},
    "uce-2025: 1": {"erase": 1, "rows": 1},
    "uce-2025: 10": {"erase": 10, "rows": 1},
    "uce-2025: 100 + 100 kept": {"erase": 100, "keep": 100, "rows": 1},
    "uce-2025: 100 + 1,000 kept": {"erase": 100, "keep": 1000, "rows": 1},
    "time: 1": {"erase": 1, "rows": 77, "ridge": 0.1},
    "rece: 1 epoch": {"epochs": 1},
    "rece: 3 epochs": {"epochs": 3, "aim": 0.6, "aim_ratio": 100},
    "rece: 5 epochs": {"epochs": 5},
    "stream: erase": {"stream": "erase", "aim_gb": 1.5},
    "stream: write": {"stream": "write", "aim_gb": 1.5},
}
QUICK = ("uce-2023: 1", "uce-2025: 1", "rece: 1 epoch")


def peak_gb() -> float:
    """Return this process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- efface ---
def apply(weights: list[Any], factors: Any) -> None:
    """Edit the matrices in place, one by one, with the factors as a saved edit has them."""
    from efface.methods.closed_form.method import text_edit

    text_map = text_edit(("unet.to_k.weight",), factors, {}).maps[0]
    for weight in weights:
        weight.add_(text_map.delta(weight))


def run_solve(case: dict[str, Any]) -> dict[str, Any]:
    """Time one UCE or TIME edit, from text vectors to edited matrices."""
    from _plain import baseline_solve, plain_map, timed
    from _sd14 import WIDTH, matrices, preserve, problem

    from efface.methods.closed_form.least_squares import solve
    from efface.methods.closed_form.matrices import Factors, Kept

    c, g, k = problem(case)
    weights, ridge, scale = matrices(), case.get("ridge", 0.5), preserve(case)

    def work() -> Any:
        fit = solve(c, g, ridge, 1.0, Kept.of(k, scale))
        apply(weights, fit.step)
        return fit

    wall, cpu, fit = timed(work)
    found = {"seconds": wall, "cpu_seconds": cpu, "peak_gb": peak_gb(), "condition": fit.condition}
    expected = plain_map(c, g, k, ridge, scale)
    off = (Factors.identity(WIDTH).plus(fit.step).matrix() - expected).norm() / expected.norm()
    return {**found, "deviation": float(off), **baseline_solve(case, ridge, scale)}


def run_rece(case: dict[str, Any]) -> dict[str, Any]:
    """Time RECE as its code runs it (all rows, current weights), its UCE edit included."""
    from _plain import baseline_rece, plain_rece, timed
    from _sd14 import LENGTH, matrices, texts

    from efface.methods.closed_form.least_squares import derive, solve
    from efface.methods.closed_form.matrices import Factors, Kept, Outputs, weight_gram

    c, empty = texts(1, 2)[0], texts(1, 99)[0]
    weights, base = matrices(), matrices()

    def work(system: Any = None) -> Factors:
        system = weight_gram(base) if system is None else system
        change = solve(c[2:], empty[: LENGTH - 2], 0.5, 1.0, Kept.of(empty, 1.0)).step
        outputs = Outputs.of(system).plus(change, system)
        for _ in range(case["epochs"]):
            derived = derive(c, outputs, 0.1)
            step = change.pushed(solve(derived, empty, 0.1, 1.0, Kept.of(empty, 0.1)).step)
            change, outputs = change.plus(step), outputs.plus(step, system)
        apply(weights, change)
        return change

    wall, cpu, change = timed(work)
    found = {"seconds": wall, "cpu_seconds": cpu, "peak_gb": peak_gb()}
    system = weight_gram(base)
    found["seconds_gram_remembered"] = timed(lambda: work(system))[0]
    expected = plain_rece(c, empty, base, case["epochs"])
    found["deviation"] = float((change.matrix() - expected).norm() / expected.norm())
    return {**found, **baseline_rece(case["epochs"], base)}


# --- a checkpoint on disk ---
def run_stream(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time `erase` on, or `write` of, a checkpoint on disk; the peak is that of the whole process."""
    path, edit_path = folder / "model.safetensors", folder / "edit.safetensors"
    from _plain import timed

    from efface.edits.edit import Edit
    from efface.methods.closed_form.stream import erase
    from efface.methods.uce import UCE
    from efface.models.files import stream

    if case["stream"] == "erase":

        def work() -> None:
            erase(UCE(), path, ["church"], ["house"], tokenizer=folder / "tokenizer").save(edit_path)
    else:

        def work() -> None:
            stream.write(Edit.load(edit_path), path, folder / "copy.safetensors")

    wall, cpu, _ = timed(work, 1)
    size = path.stat().st_size / 2**30
    return {"seconds": wall, "cpu_seconds": cpu, "peak_gb": peak_gb(), "checkpoint_gb": size}


# --- running ---
def child(name: str, folder: str) -> None:
    """Run one case in this process and print its record."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    case = CASES[name]
    with torch.no_grad():
        if "stream" in case:
            found = run_stream(case, Path(folder))
        else:
            found = run_rece(case) if "epochs" in case else run_solve(case)
    print(json.dumps(found))


def run(name: str, threads: int, folder: str) -> dict[str, Any]:
    """Run one case in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--child", name, "--folder", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "baseline_seconds" in found:
        found["ratio"] = found["baseline_seconds"] / found["seconds"]
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
    aims = {key: value for key, value in CASES[name].items() if key.startswith("aim")}
    return {"case": name, **rounded, **aims}


def surroundings(threads: int) -> dict[str, Any]:
    """Return what the numbers depend on."""
    import platform

    import psutil

    from efface.edits.provenance import git, versions

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "host": {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 2**30, 1)},
        "threads": threads,
        "versions": versions(),
        "git": git(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Run the chosen cases, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases only, no record")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--folder", default="", help="where to make the checkpoint (default: a temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder)
        return
    import tempfile

    from _draw import svg

    chosen = [name for name in (QUICK if given.quick else CASES) if given.only in name]
    record = {"benchmark": "closed_form", **surroundings(given.threads), "cases": []}
    with tempfile.TemporaryDirectory(dir=given.folder or None) as folder:
        if any("stream" in CASES[name] for name in chosen):
            from _sd14 import make_checkpoint

            make_checkpoint(Path(folder) / "model.safetensors")
        for name in chosen:
            found = run(name, given.threads, folder)
            record["cases"].append(found)
            ratio = f"{found['ratio']:8.0f}x" if "ratio" in found else " " * 9
            print(f"{name:32} {found['seconds']:8.3f} s {ratio} {found['peak_gb']:6.2f} GB", flush=True)
    if not (given.quick or given.only or given.no_record):
        target = HERE / "records" / "closed_form.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        chart = HERE.parent / "docs" / "methods" / "closed_form_speed.svg"
        chart.write_text(svg(record), encoding="utf-8")
        print(target, chart, sep="\n")


if __name__ == "__main__":
    main()
