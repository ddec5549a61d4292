"""Kill -9 in the middle of every training, resume it, and get the edit of an uninterrupted run, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efface import registry
from efface.concept import Concept
from efface.methods.finetune.method import FineTune, checkpoints
from efface.models.model import Model

STEPS, SAVES = 4, 2  # killed while the second checkpoint, of step 2, is written
NAMES = [name for name in registry.names("methods") if issubclass(registry.get("methods", name), FineTune)]
CONCEPTS = [Concept("church", anchor="house"), Concept("dog", anchor="cat")]


def method(name):
    cls = registry.get("methods", name)
    return cls(**{**cls.QUICK, "steps": STEPS, "lr": 1e-3})


def train_and_die(name: str, model: Model, folder: Path) -> None:
    """Train with checkpoints of every step; kill this process just before a finished file gets its name."""
    replace, count = os.replace, 0

    def deadly(source, target):
        nonlocal count
        count += Path(target).name == "training.safetensors"
        if count == SAVES:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = deadly
    with checkpoints(folder, every=1):
        method(name)(model, CONCEPTS)


@pytest.fixture(scope="module")
def graves(folder, tmp_path_factory):
    """Let one process per method be killed, and return the folder of their checkpoints."""
    root = tmp_path_factory.mktemp("killed")
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # a fork has no other threads
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(root), *NAMES], capture_output=True, text=True, check=False,
        env=alone, timeout=500,
    )  # fmt: skip
    assert done.stdout.split() == [f"{name}={-signal.SIGKILL}" for name in NAMES], done.stdout + done.stderr
    return root


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed(name, tiny, graves):
    grave = graves / name
    assert (grave / "training.safetensors").exists()
    assert list(grave.glob(".training*.tmp")), "the kill came while a checkpoint was written"
    before = (grave / "training.safetensors").stat().st_mtime_ns
    with checkpoints(grave, every=STEPS):
        resumed, resumed_by_products = method(name).run(tiny, CONCEPTS)
    whole, whole_by_products = method(name).run(tiny, CONCEPTS)
    assert resumed.id == whole.id
    assert resumed.meta["training"] == whole.meta["training"]
    assert len(whole.meta["training"]["loss"]) == STEPS
    for key, edit in whole_by_products.items():
        assert all(torch.equal(resumed_by_products[key].extra[n], t) for n, t in edit.extra.items())
    assert (grave / "training.safetensors").stat().st_mtime_ns > before
    assert any(delta.any() for delta in whole.delta.values())


if __name__ == "__main__":  # a fork per method: torch and the model are loaded once
    where, root = sys.argv[1], Path(sys.argv[2])
    shared = Model.load(where)
    for chosen in sys.argv[3:]:
        pid = os.fork()
        if pid == 0:
            train_and_die(chosen, shared, root / chosen)
            os._exit(0)
        print(f"{chosen}={os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)
