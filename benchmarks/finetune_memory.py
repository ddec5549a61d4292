"""Peak memory of a training step with one UNet in memory against the usual two, at Stable Diffusion 1.4's size.

Both do the same step of ESD-x on the same noisy latent: efface, whose frozen teacher shares every tensor with the
student but the trained ones, and a baseline that keeps a second UNet as its teacher. Each is a process of its own; the
peak is that of the step, counted from when the model is loaded. The trained weights must come out equal.

    python benchmarks/finetune_memory.py            # about five minutes on one core, 13 GB of memory, 4 GB of disk
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "records" / "finetune_memory.json"
LR = 1e-5


def rss_gb(what: str) -> float:
    """Return this process's resident memory: VmRSS, now, or VmHWM, the largest since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status does not tell resident memory")


def forget_peak() -> None:
    """Count the largest resident memory from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def one(model: Any, steps: int) -> dict[str, Any]:
    """Train by efface's ESD."""
    from efface.methods.esd import ESD

    edit = ESD(steps=steps, lr=LR, ddim_steps=2, source="base")(model, ["church"])
    return dict(edit.delta)


def two(model: Any, steps: int) -> dict[str, Any]:
    """Train a UNet in place, with a copy of it as the frozen teacher; latents are drawn as efface draws them."""
    import copy

    import torch
    from torch.nn.functional import mse_loss

    from efface.models.model import Model
    from efface.models.trajectory import partly_denoise
    from efface.training.loop import generator

    pipe = copy.copy(model.pipe)
    pipe.unet = copy.deepcopy(model.unet)  # the second UNet
    teacher = Model(pipe)
    trained = {f"unet.{name}": p for name, p in model.unet.named_parameters() if ".attn2." in name}
    before = {name: p.detach().clone() for name, p in trained.items()}
    adam = torch.optim.Adam([p.requires_grad_() for p in trained.values()], lr=LR)
    c, null = model.encode(["church"]), model.encode([""])
    for step in range(steps):
        z, t, _ = partly_denoise(teacher, c, null, generator(0, step, 0), 1, 3.0, 2)
        with torch.no_grad():
            e_c, e_0 = teacher.denoise(z, t, c, null)
        adam.zero_grad()
        mse_loss(model.eps(z, t, c), e_0 - (e_c - e_0)).backward()
        adam.step()
    return {name: p.detach() - before[name] for name, p in trained.items()}


def child(which: str, folder: Path, steps: int) -> None:
    """Load, train, print a record and the sha256 of what was trained."""
    import torch

    from efface.models.model import Model
    from efface.util.files import sha256_tensors

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = Model.load(folder / "model.safetensors", tokenizer=folder / "tokenizer")
    loaded = rss_gb("VmRSS")
    forget_peak()
    began = time.process_time()
    delta = {"one": one, "two": two}[which](model, steps)
    found = {"peak_gb": rss_gb("VmHWM"), "loaded_gb": loaded, "cpu_seconds": time.process_time() - began}
    print(json.dumps({key: round(value, 2) for key, value in found.items()} | {"sha256": sha256_tensors(delta)}))


def main() -> None:
    """Run both, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is, or is made; kept (default: a temporary one)"
    )
    parser.add_argument("--child", choices=("one", "two"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.steps)
        return
    from _sd14 import make_checkpoint
    from closed_form import surroundings

    record: dict[str, Any] = {"benchmark": "finetune_memory", "method": "esd", "params": "x", "steps": given.steps}
    record |= surroundings(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "model.safetensors").exists():
            make_checkpoint(folder / "model.safetensors")
        for which in ("one", "two"):
            line = [sys.executable, __file__, "--child", which, "--folder", str(folder), "--steps", str(given.steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{which} failed:\n{done.stderr[-2000:]}")
            record[which] = json.loads(done.stdout.splitlines()[-1])
            print(which, record[which], flush=True)
    if record["one"].pop("sha256") != record["two"].pop("sha256"):
        sys.exit("the two trainings differ, so their memory cannot be compared")
    record["ratio"] = round(record["one"]["peak_gb"] / record["two"]["peak_gb"], 3)
    print(json.dumps({"ratio": record["ratio"], "saved_gb": record["two"]["peak_gb"] - record["one"]["peak_gb"]}))
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
