"""Two processes under accelerate's environment train one edit together."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from efface.edits.edit import Edit
from efface.methods.esd import ESD

SCRIPT = """
import sys
from efface.methods.finetune.method import checkpoints
from efface.methods.esd import ESD
from efface.models.model import Model
where, out, folder = sys.argv[1:]
with checkpoints(folder, every=1):
    method = ESD(steps=2, ddim_steps=3, optimizer="sgd", lr=1.0, source="base")
    method(Model.load(where), ["church"]).save(out)
"""


@pytest.mark.slow
def test_two_processes_train_one_edit(folder, tiny, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outs = [tmp_path / f"{rank}.safetensors" for rank in (0, 1)]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(out), str(tmp_path / "run")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    first, second = (Edit.load(out) for out in outs)
    assert first.id == second.id
    alone = ESD(steps=2, ddim_steps=3, optimizer="sgd", lr=1.0, source="base")(tiny, ["church"])
    assert first.id != alone.id
    assert any(torch.any(d) for d in first.delta.values())
