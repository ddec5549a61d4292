"""Run the methods on a random model of Stable Diffusion 1.4's size: seconds and peak memory, one process a method.

UCE loads the model, edits it, saves the edit, loads it again and must predict the same noise bit for bit. Every trained
method runs two steps of one latent through `efface erase`, from the checkpoint on disk to the edit on disk. The peak is
the largest resident memory of the whole process, imports and the mapped checkpoint included.

    python benchmarks/sd14_size.py                  # about half an hour on one core; 20 GB of memory, 9 GB of disk
    python benchmarks/sd14_size.py --only sdd --no-record
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
RECORD = HERE / "records" / "sd14_size.json"
LIMIT_GB = 24
DRAWN = ("--ddim-steps", "2")  # steps of the trajectory that latents are taken from
FULL = ("--gradient-checkpointing", "--optimizer", "sgd")  # all 860 million weights; Adam's moments are 6.4 GiB more
CASES: dict[str, tuple[str, ...]] = {
    "uce": (),
    "esd": DRAWN,
    "sdd": DRAWN,
    "surgical": (*DRAWN, "--warmup", "0", "--start", "0"),
    "kpop": DRAWN,
    "ca": ("--images", "1", "--image-steps", "1"),
    "fmn": ("--images", "1", "--image-steps", "1", "--optimizer", "sgd"),
    "task_vector": ("--images", "1", "--image-steps", "1", *FULL),
    "sa": (
        *("--images", "1", "--replay-images", "1", "--image-steps", "1"),
        *("--fisher-images", "1", "--fisher-times", "2", *FULL),
    ),
}


def command(name: str, folder: Path) -> list[str]:
    """Return the command line of a case; it writes `name`.safetensors into the folder."""
    model, out = folder / "model.safetensors", folder / f"{name}.safetensors"
    if name == "uce":
        return [sys.executable, __file__, "--child", str(folder)]
    few = ["--steps", "2", "--batch", "1", *CASES[name], "--tokenizer", str(folder / "tokenizer")]
    return [sys.executable, "-m", "efface", "erase", name, "church", "--model", str(model), *few, "-o", str(out)]


def uce(folder: Path) -> None:
    """Load, edit, save, reload; fail unless the reloaded edit gives the same weights and the same noise."""
    import torch

    from efface.edits.edit import Edit
    from efface.methods.uce import UCE
    from efface.models.model import Model

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = Model.load(folder / "model.safetensors", tokenizer=folder / "tokenizer")
    edit = UCE()(model, ["church"], ["house"])
    edit.save(folder / "uce.safetensors")
    again = Edit.load(folder / "uce.safetensors")
    x, c = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)), model.encode(["a church"])
    with torch.no_grad(), edit.applied(model) as one, again.applied(model) as two:
        assert all(torch.equal(one.weights()[name], two.weights()[name]) for name in edit.names)
        assert not torch.equal(one.weights()[edit.names[0]], model.weights()[edit.names[0]])
        assert torch.equal(one.eps(x, 500, c), two.eps(x, 500, c))


def run(name: str, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run one case in a process of its own; return its seconds, peak memory and what its edit says of it.

    Raises RuntimeError with the process's last words when it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    line, began = command(name, folder), time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"{name} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    found = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss / 2**20, 2),
    }
    return {"case": name, "settings": " ".join(CASES[name]), **found, **told(folder / f"{name}.safetensors")}


def told(path: Path) -> dict[str, Any]:
    """Return what an edit says of its making, and remove it: that of a fully trained model has 3 GB."""
    from efface.util.files import safetensors_meta

    about = json.loads(safetensors_meta(path)["efface"])
    size = path.stat().st_size
    path.unlink()
    return {"erase_seconds": about["seconds"], "edit_mb": round(size / 2**20, 1), **about.get("training", {})}


def main() -> None:
    """Run the chosen cases, one after the other, and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is, or is made; kept (default: a temporary one)"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        uce(given.child)
        return
    from _sd14 import make_checkpoint
    from closed_form import surroundings

    old = json.loads(RECORD.read_text())["cases"] if RECORD.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "model.safetensors").exists():
            make_checkpoint(folder / "model.safetensors")
        for name in given.only:
            about = surroundings(given.threads)
            found = run(name, folder, given.threads)
            print(json.dumps(found), flush=True)
            old = [case for case in old if case["case"] != name] + [found | about]
            if not given.no_record:
                record = {"benchmark": "sd14_size", "limit_gb": LIMIT_GB, "cases": old}
                RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
