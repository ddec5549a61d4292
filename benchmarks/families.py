"""Time UCE on the text weights of SDXL and FLUX.1 at their real shapes, beside the published way, in one run.

The weights and the text vectors are random: only their shapes matter here, and no text encoder is needed. Timed on
efface's side is the whole method, from names of concepts to new matrices, provenance included; encoding is on neither
side. The published way is that of UCE's code of 2025 (https://github.com/rohitgandikota/unified-concept-editing): for
every matrix the targets' values, both sums, and an inverse, in float32. Each side runs in a process of its own, so that
its memory can be told.

    python benchmarks/families.py             # prints seconds, memory and their ratio
    python benchmarks/families.py --record    # also writes records/families.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "records" / "families.json"
AIM = 50  # times as fast as the published way
SHAPES = {  # height, width and number of the matrices; tokens of a prompt
    "sdxl": ({1280: 120, 640: 20}, 2048, 77),
    "flux": ({3072: 1}, 4096, 512),
}
CASES = {
    "sdxl: last word": ("sdxl", "repo-2025"),
    "sdxl: last word to the end, empty prompt kept": ("sdxl", ""),
    "flux: last word": ("flux", "repo-2025"),
    "flux: last word to the end, empty prompt kept": ("flux", ""),
}
ERASE = "church"


def matrices(shape: str) -> dict[str, Any]:
    """Return random matrices of a family's shapes, by name."""
    import torch

    heights, width, _ = SHAPES[shape]
    rng = torch.Generator().manual_seed(0)
    every = [height for height, count in heights.items() for _ in range(count)]
    return {f"unet.{i}.to_k.weight": torch.randn(h, width, generator=rng) * width**-0.5 for i, h in enumerate(every)}


@cache
def vectors(shape: str, prompt: str) -> Any:
    """Return the random text vectors of a prompt, (len, dim): the start is the same in all. Made before the clock."""
    import torch

    _, width, length = SHAPES[shape]
    first = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    rest = torch.randn(length - 1, width, generator=torch.Generator().manual_seed(2 + sum(prompt.encode())))
    return torch.cat([first, rest])


def view(shape: str, weights: dict[str, Any]) -> Any:
    """Return what a closed-form method sees of a model: text vectors and the matrices that read them."""
    import torch
    from torch import nn

    from efface.context import Context
    from efface.models.files.stream import StreamedModel
    from efface.models.text import Tokens

    class Shapes(StreamedModel):
        """View random matrices as a model."""

        def weights(self, prefix: str | None = None) -> dict[str, nn.Parameter]:
            return {name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()}

        def text_weights(self) -> list[str]:
            return list(weights)

        def encode(self, prompts: Sequence[str]) -> Context:
            return Context(torch.stack([vectors(shape, prompt) for prompt in prompts]))

    def streams(prompt: str) -> tuple[Tokens, ...]:
        words = len(prompt.split())
        ids = (0, *(sum(word.encode()) for word in prompt.split()), 1)
        return (Tokens((*ids, *[2] * (SHAPES[shape][2] - len(ids))), words, words + 1),)

    model = Shapes(SimpleNamespace(), name=shape)
    width = SHAPES[shape][1]
    model.__dict__["family"] = SimpleNamespace(streams=streams, width=width, BLOCKS={}, TITLE=shape, DENOISER="unet")
    return model


def ours(name: str) -> dict[str, float]:
    """Time efface's UCE, twice; the faster counts."""
    from efface.methods.closed_form.cache import forget
    from efface.methods.uce import UCE

    shape, preset = CASES[name]
    weights = matrices(shape)
    vectors(shape, ERASE), vectors(shape, "")
    base, seconds = memory(), []
    for _ in range(2):
        forget()
        model, began = view(shape, weights), time.process_time()
        edit = UCE.preset(preset)(model, [ERASE])
        edit.new_weights(model)
        seconds.append(time.process_time() - began)
    return {"seconds": min(seconds), "memory_gb": memory() - base, "edit_mb": _size(edit)}


def _size(edit: Any) -> float:
    """Return the megabytes of an edit's factors."""
    return sum(4e-6 * (text_map.left.numel() + text_map.right.numel()) for text_map in edit.maps)


def published(name: str) -> dict[str, float]:
    """Time the published way on the same rows: projection, two sums and an inverse for every matrix."""
    import torch

    shape, preset = CASES[name]
    weights = matrices(shape)
    ridge, word = 0.5, 1
    old, new = vectors(shape, ERASE), vectors(shape, "")
    base, began = memory(), time.process_time()
    rows, goals = (old[word : word + 1], new[:1]) if preset else (old[word:], new[: len(new) - word])
    kept = vectors(shape, "") if not preset else rows[:0]
    found = []
    for weight in weights.values():
        top = ridge * weight + (goals @ weight.T).T @ rows + (kept @ weight.T).T @ kept
        bottom = ridge * torch.eye(weight.shape[1]) + rows.T @ rows + kept.T @ kept
        found.append(top @ torch.inverse(bottom))
    return {"seconds": time.process_time() - began, "memory_gb": memory() - base}


def agreement(name: str) -> float:
    """Return how far the two sides' first matrices are from each other, as a share of the change, in a small copy."""
    import torch

    from efface.methods.uce import UCE

    shape, preset = CASES[name]
    weights = dict(list(matrices(shape).items())[:1])
    (key, weight), model = next(iter(weights.items())), view(shape, weights)
    mine = UCE.preset(preset)(model, [ERASE]).new_weights(model)[key]
    old, new = vectors(shape, ERASE).double(), vectors(shape, "").double()
    rows, goals = (old[1:2], new[:1]) if preset else (old[1:], new[: len(new) - 1])
    kept, wide = (rows[:0] if preset else new), weight.double()
    top = 0.5 * wide + (goals @ wide.T).T @ rows + (kept @ wide.T).T @ kept
    bottom = 0.5 * torch.eye(len(wide.T), dtype=torch.float64) + rows.T @ rows + kept.T @ kept
    theirs = torch.linalg.solve(bottom, top.T).T
    return float((mine - theirs).norm() / (theirs - wide).norm())


def memory() -> float:
    """Return this process's largest resident memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


SIDES = {"efface": ours, "published": published, "difference": agreement}


def run(name: str, side: str) -> Any:
    """Run one side of a case in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", name, "--side", side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}, {side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        import torch

        torch.set_num_threads(1)
        with torch.no_grad():
            print(json.dumps(SIDES[given.side](given.child)))
        return
    from closed_form import surroundings

    record: dict[str, Any] = {"benchmark": "families", **surroundings(1), "aim": AIM, "cases": []}
    print(f"{'processor seconds, memory on top of the weights':48} {'efface':>18} {'published':>18} {'ratio':>8}")
    for name in (name for name in CASES if given.only in name):
        case = {side: run(name, side) for side in SIDES}
        case["ratio"] = case["published"]["seconds"] / case["efface"]["seconds"]
        record["cases"].append(
            {"case": name, **json.loads(json.dumps(case), parse_float=lambda x: float(f"{float(x):.4g}"))}
        )
        sides = "".join(f"{case[s]['seconds']:8.3f} s {case[s]['memory_gb']:5.2f} GB" for s in ("efface", "published"))
        print(f"{name:48} {sides} {case['ratio']:7.0f}x  (difference {case['difference']:.1e})", flush=True)
    if given.record and not given.only:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
