"""Time closed-form erasing at the size of Stable Diffusion 1.4, and write benchmarks/records/closed_form.json.

Timed is the whole method on both sides, from names of concepts to new matrices: filtering templates, encoding texts,
solving, making the edit. The baseline is what the published code does (`_plain.py`), run in the same process.

    python benchmarks/closed_form.py            # all cases, one thread, about 15 minutes and 9 GB of disk
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES: dict[str, dict[str, Any]] = {
    "uce-2023: 1": {"method": "uce", "erase": 1, "keep": 0},
    "uce-2023: 10": {"method": "uce", "erase": 10, "keep": 0},
    "uce-2023: 100 + 100 kept": {"method": "uce", "erase": 100, "keep": 100},
    "uce-2023: 100 + 1,000 kept, encoder cut": {"method": "uce", "erase": 100, "keep": 1000, "layers": 0},
    "uce-2023: 1,000 + 1,000 kept": {"method": "uce", "erase": 1000, "keep": 1000},
    "uce-2023: 1,000 + 1,000 kept, encoder cut": {"method": "uce", "erase": 1000, "keep": 1000, "layers": 0},
    "uce-2025: 1": {"method": "uce", "preset": "repo-2025", "erase": 1, "keep": 0},
    "uce-2025: 10": {"method": "uce", "preset": "repo-2025", "erase": 10, "keep": 0},
    "uce-2025: 100 + 100 kept": {"method": "uce", "preset": "repo-2025", "erase": 100, "keep": 100},
    "time: 1": {"method": "time", "erase": 1, "keep": 0},
    "rece: 1 epoch": {"method": "rece", "preset": "repo", "erase": 1, "keep": 0, "epochs": 1},
    "rece: 3 epochs": {"method": "rece", "preset": "repo", "erase": 1, "keep": 0, "epochs": 3},
    "stream: erase": {"stream": "erase", "aim_gb": 1.5},
    "stream: write": {"stream": "write", "aim_gb": 1.5},
}
QUICK = ("uce-2023: 1", "uce-2025: 1", "time: 1", "rece: 1 epoch")
IN_FULL = 10  # erased concepts up to which a baseline is run in full, where it can be
SAMPLES = {320: 0, 640: 10, 1280: 20}  # a matrix of each height


class Clock:
    """Measure wall and processor seconds, and the processor seconds that the text encoder took of them."""

    def __init__(self, encoder: Any):
        self.encoding, self.began = 0.0, 0.0
        encoder.register_forward_pre_hook(self._start)
        encoder.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.began = time.process_time()

    def _stop(self, *_: Any) -> None:
        self.encoding += time.process_time() - self.began

    def run(self, work: Callable[[], Any], times: int = 1) -> tuple[dict[str, float], Any]:
        """Return the seconds of the run that took the least processor time, and what the last one returned."""
        found, result = [], None
        for _ in range(times):
            self.encoding = 0.0
            wall, cpu = time.perf_counter(), time.process_time()
            result = work()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found.append((cpu, wall, self.encoding))
        cpu, wall, encoding = min(found)
        return {"seconds": wall, "cpu_seconds": cpu, "encoding_cpu_seconds": encoding}, result


def peak_gb() -> float:
    """Return this process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def concepts(case: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return what is erased and what is kept: names that no two of them share."""
    from efface.concept import Concept

    anchor = "blue thing 0" if case["method"] == "time" else ""  # TIME's code wants the source's words in the target
    return (
        [Concept(f"thing {i}", anchor=anchor) for i in range(case["erase"])],
        [Concept(f"other {i}") for i in range(case["keep"])],
    )


def run_method(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time one method of efface and its baseline on the checkpoint's text encoder and matrices."""
    from dataclasses import replace

    from efface import registry
    from efface.methods.closed_form.cache import forget
    from efface.models.files.stream import open_model

    model = open_model(folder / "model.safetensors", folder / "tokenizer")
    encoder = model.pipe.text_encoder
    if "layers" in case:  # all but the text encoder at its full size
        layers = getattr(encoder, "text_model", encoder).encoder
        layers.layers = layers.layers[: case["layers"]]
    clock = Clock(encoder)
    fields = {"epochs": case["epochs"], "derive_ridge": 0.1} if "epochs" in case else {}  # as for nudity
    method = registry.get("methods", case["method"]).preset(case.get("preset", ""), **fields)
    erase, keep = concepts(case)

    def work() -> Any:
        forget()  # nothing may be remembered from the last run, in memory or in the view of the model
        view = replace(model)
        edit = method(view, erase, keep)
        return edit, edit.new_weights(view)

    found, (edit, new) = clock.run(work, 3 if case["erase"] <= IN_FULL else 1)
    found |= {"peak_gb": peak_gb(), "condition": condition(edit.meta["closed_form"])}
    return {**found, **run_baseline(case, model, clock, erase, keep, new)}


def condition(report: dict[str, Any]) -> float:
    """Return the condition number of the first least squares."""
    return report.get("first", report)["condition"]


# --- the baseline ---
def run_baseline(
    case: dict[str, Any], model: Any, clock: Clock, erase: list[Any], keep: list[Any], new: dict[str, Any]
) -> dict[str, Any]:
    """Time the published way: in full where it can be waited for, else from a few texts and matrices."""
    import _plain as plain

    pipe, names = model.pipe, sorted(new, key=lambda name: len(new[name]))
    weights = [model.weights()[name].detach().clone() for name in names]
    texts, kept = [c.name for c in erase], [c.name for c in keep]
    every = range(len(weights))
    if case["method"] == "rece":
        found, result = rece(case["epochs"], pipe, weights, clock, texts[0])
    elif case["method"] == "time":
        prompts = ("A", "A photo of a", "An image of a", "A picture of a")
        pairs = [(f"{prompt} {texts[0]}", f"{prompt} {erase[0].anchor}") for prompt in prompts]
        found, result = clock.run(lambda: plain.time(pipe, weights, pairs, every))
        found["baseline"] = "measured in full"
    elif case["erase"] <= IN_FULL and (case.get("preset") or case["erase"] == 1):
        call = plain.uce_2025 if case.get("preset") else plain.uce_2023
        held = kept if case.get("preset") else ["", *kept]
        found, result = clock.run(lambda: call(pipe, weights, texts, held, every))
        found["baseline"] = "measured in full"
    else:
        found, result = few(case, pipe, weights, clock, texts, kept), None
    found = {key if key == "baseline" else f"baseline_{key}": value for key, value in found.items()}
    if result is not None:
        found["difference"] = max(map(relative, weights, result, (new[name] for name in names)))
    return found


def relative(weight: Any, plain: Any, new: Any) -> float:
    """Return how far the baseline's matrix is from efface's, as a share of the change."""
    return float((plain - new).norm() / (new - weight).norm())


def rece(epochs: int, pipe: Any, weights: list[Any], clock: Clock, text: str) -> tuple[dict[str, Any], Any]:
    """Time RECE's code: the UCE edit it starts from, and every epoch.

    One epoch is run in full. Of more, both are run in one matrix of each height: the code's work for a matrix does not
    depend on the other matrices that are edited. An epoch's derivation, done once for all, is taken off the sums.
    """
    import _plain as plain

    every = list(range(len(weights)))
    if epochs == 1:
        first, now = clock.run(lambda: plain.uce_2023(pipe, weights, [text], [""], every))
        each, now = clock.run(lambda: plain.rece_epoch(pipe, now, weights, text, every))
        how = "its UCE edit and one epoch measured in full"
        return {**{key: first[key] + each[key] for key in first}, "baseline": how}, now
    heights = [len(weight) for weight in weights]
    total = dict.fromkeys(("seconds", "cpu_seconds", "encoding_cpu_seconds"), 0.0)
    derivation, _ = clock.run(lambda: plain.rece_epoch(pipe, weights, weights, text, []))
    for height in SAMPLES:
        one = [heights.index(height)]
        first, _ = clock.run(lambda o=one: plain.uce_2023(pipe, weights, [text], [""], o))
        each, _ = clock.run(lambda o=one: plain.rece_epoch(pipe, weights, weights, text, o))
        count = heights.count(height)
        total = {k: v + count * (first[k] + epochs * (each[k] - derivation[k])) for k, v in total.items()}
    total = {key: value + epochs * derivation[key] for key, value in total.items()}
    return {
        **total,
        "baseline": "its UCE edit and one epoch in a matrix of each height, times matrices and epochs",
    }, None


def few(
    case: dict[str, Any], pipe: Any, weights: list[Any], clock: Clock, texts: list[str], kept: list[str]
) -> dict[str, Any]:
    """Extrapolate to many texts: the cost is linear in the numbers of erased and of kept ones."""
    import _plain as plain

    recent = bool(case.get("preset"))
    heights = [len(weight) for weight in weights]
    chosen = list(range(len(weights))) if recent else [heights.index(height) for height in SAMPLES]
    counts = [1 if recent else heights.count(height) for height in (heights if recent else SAMPLES)]
    start, more = (5, 20) if recent else (1, 3)
    measured: dict[tuple[int, int], dict[str, float]] = {}

    def seconds(erase: int, keep: int, key: str) -> float:
        if (erase, keep) not in measured:
            total = dict.fromkeys(("seconds", "cpu_seconds", "encoding_cpu_seconds"), 0.0)
            for part, count in [(chosen, 1)] if recent else [([i], n) for i, n in zip(chosen, counts, strict=True)]:
                call, held = (plain.uce_2025, kept[:keep]) if recent else (plain.uce_2023, ["", *kept][:keep])
                one, _ = clock.run(lambda c=call, h=held, p=part: c(pipe, weights, texts[:erase], h, p))
                total = {name: total[name] + count * one[name] for name in total}
            measured[erase, keep] = total
        return measured[erase, keep][key]

    held = len(kept) + (not recent)
    keys = ("seconds", "cpu_seconds", "encoding_cpu_seconds")
    found: dict[str, Any] = {
        key: plain.extrapolated(lambda e, k, name=key: seconds(e, k, name), len(texts), held, start, more)
        for key in keys
    }
    where = "all matrices" if recent else "a matrix of each height"
    return {**found, "baseline": f"extrapolated from {start} and {more} texts of each kind in {where}"}


# --- a checkpoint on disk ---
def run_stream(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time `erase` on, or `write` of, a checkpoint on disk; the peak is that of the whole process."""
    path, edit_path = folder / "model.safetensors", folder / "edit.safetensors"
    from efface.edits.edit import Edit
    from efface.methods.closed_form.stream import erase
    from efface.methods.uce import UCE
    from efface.models.files import stream

    began = time.perf_counter(), time.process_time()
    if case["stream"] == "erase":
        erase(UCE(), path, ["church"], ["house"], tokenizer=folder / "tokenizer").save(edit_path)
    else:
        stream.write(Edit.load(edit_path), path, folder / "copy.safetensors")
    found = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    return {**found, "peak_gb": peak_gb(), "checkpoint_gb": path.stat().st_size / 2**30}


# --- running ---
def child(name: str, folder: str) -> None:
    """Run one case in this process and print its record."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    case = CASES[name]
    with torch.no_grad():
        found = run_stream(case, Path(folder)) if "stream" in case else run_method(case, Path(folder))
    print(json.dumps(found))


def run(name: str, threads: int, folder: str) -> dict[str, Any]:
    """Run one case in a process of its own, with an empty cache folder."""
    cache = Path(folder) / "cache" / name.replace(" ", "-").replace(":", "")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "EFFACE_HOME": str(cache)}
    command = [sys.executable, __file__, "--child", name, "--folder", folder]
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "baseline_cpu_seconds" in found:
        kinds = ("", "baseline_")
        found["ratio"] = found["baseline_cpu_seconds"] / found["cpu_seconds"]
        found["ratio_wall"] = found["baseline_seconds"] / found["seconds"]
        rest = [found[f"{kind}cpu_seconds"] - found[f"{kind}encoding_cpu_seconds"] for kind in kinds]
        found["ratio_without_encoding"] = rest[1] / rest[0]
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
    aims = {key: value for key, value in CASES[name].items() if key.startswith("aim")}
    return {"case": name, **rounded, **aims, "load_before": round(load, 2)}


def surroundings(threads: int) -> dict[str, Any]:
    """Return what the numbers depend on."""
    import platform

    from efface.edits.provenance import git, versions

    cpu, memory = platform.processor() or platform.machine(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "host": {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory / 2**30, 1)},
        "threads": threads,
        "versions": versions(),
        "git": git(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    """Run the chosen cases, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases only, no record")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--folder", default="", help="where to make the checkpoint (default: a temporary folder)")
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder)
        return
    import tempfile

    chosen = [name for name in (QUICK if given.quick else CASES) if given.only in name]
    record = {"benchmark": "closed_form", **surroundings(given.threads), "note": given.note, "cases": []}
    with tempfile.TemporaryDirectory(dir=given.folder or None) as folder:
        from _sd14 import make_checkpoint

        make_checkpoint(Path(folder) / "model.safetensors")
        for name in chosen:
            found = run(name, given.threads, folder)
            record["cases"].append(found)
            ratio = f"{found['ratio']:8.1f}x" if "ratio" in found else " " * 9
            print(json.dumps(found), file=sys.stderr)
            print(f"{name:32} {found['cpu_seconds']:8.3f} s {ratio} {found['peak_gb']:6.2f} GB", flush=True)
    if not (given.quick or given.only or given.no_record):
        write(record)


def write(record: dict[str, Any]) -> None:
    """Write the record and its chart."""
    from _draw import svg

    target = HERE / "records" / "closed_form.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    chart = HERE.parent / "docs" / "methods" / "closed_form_speed.svg"
    chart.write_text(svg(record), encoding="utf-8")
    print(target, chart, sep="\n")


if __name__ == "__main__":
    main()
