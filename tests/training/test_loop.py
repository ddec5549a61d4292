import errno
import os

import pytest
import torch
from torch import nn

from efface.errors import BadFile, BadInput, WriteError
from efface.training.loop import Diverged, State, checkpoints, current, descend, generator, optimizer
from efface.util.files import load_safetensors


def run(steps, kind="adam", about=None, fail_at=None, lr=0.1, power=2.0, size=3):
    """Fit three numbers to noise of the step's own."""
    p = nn.Parameter(torch.ones(size))
    state = State({"p": p}, {"main": optimizer(kind, [p], lr)})

    def loss(step):
        if step == fail_at:
            raise KeyboardInterrupt
        goal = torch.randn(size, generator=generator(5, step)) if power > 1 else torch.ones(size)
        return ((p - goal).abs() ** power).sum()

    descend(loss, state, steps, label="fit", run=about or {"method": "fit"})
    return p.detach(), state.history


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, kind):
    whole, history = run(9, kind)
    with checkpoints(tmp_path, every=2), pytest.raises(KeyboardInterrupt):
        run(9, kind, fail_at=5)
    with checkpoints(tmp_path, every=2):
        resumed, again = run(9, kind)
        assert torch.equal(run(9, kind, fail_at=0)[0], whole)  # finished: nothing is done twice
    assert torch.equal(resumed, whole)
    assert again == history
    assert current() is None


def test_matches_a_plain_adam_loop():
    p = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([p], lr=0.1)
    for step in range(4):
        adam.zero_grad()
        ((p - torch.randn(3, generator=generator(5, step))) ** 2).sum().backward()
        adam.step()
    assert torch.equal(run(4)[0], p.detach())


def test_clip_bounds_the_gradient():
    p = nn.Parameter(torch.zeros(2))
    state = State({"p": p}, {"main": optimizer("sgd", [p], 1.0)})
    descend(lambda step: 100 * p.sum(), state, 1, label="", run={}, clip=1.0)
    assert float(p.detach().norm()) == pytest.approx(1.0, rel=1e-4)


def test_another_run_is_refused(tmp_path):
    with checkpoints(tmp_path):
        run(2, about={"method": "esd", "lr": 1.0})
        with pytest.raises(BadInput, match=r"another run: lr is 1\.0 there and 2\.0 here"):
            run(2, about={"method": "esd", "lr": 2.0})


def test_broken_and_foreign_checkpoints_are_refused(tmp_path):
    with checkpoints(tmp_path):
        run(2)
        path = tmp_path / "training.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(BadFile, match="truncated"):
            run(2)
        path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        with pytest.raises(BadFile, match="not a checkpoint"):
            run(2)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with checkpoints(tmp_path / "file" / "run"), pytest.raises(WriteError, match="checkpoint folder"):
        run(2)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, small_disk):
    """The last whole checkpoint stays, nothing half-written does, and with room again the run goes on from it."""
    whole, history = run(5, size=20_000)
    with checkpoints(tmp_path, every=1):
        with pytest.raises(KeyboardInterrupt):
            run(5, size=20_000, fail_at=2)
        before = (tmp_path / "training.safetensors").read_bytes()
        with small_disk(), pytest.raises(WriteError, match="cannot write") as caught:
            run(5, size=20_000)
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["training.safetensors"]
        assert (tmp_path / "training.safetensors").read_bytes() == before
        assert load_safetensors(tmp_path / "training.safetensors")[0]["tensor.p"].shape == (20_000,)
        resumed, again = run(5, size=20_000)
    assert torch.equal(resumed, whole)
    assert again == history


def test_a_disk_that_fills_up_while_the_file_is_flushed(tmp_path, monkeypatch):
    """What is written is not on disk before fsync says so; a file that fails there never gets the checkpoint's name."""
    whole, _ = run(4)
    with checkpoints(tmp_path, every=2):
        with monkeypatch.context() as patch:
            sync, count = os.fsync, iter(range(9))

            def full(descriptor):
                if next(count) == 1:  # the second checkpoint
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(descriptor)

            patch.setattr(os, "fsync", full)
            with pytest.raises(WriteError, match="No space left on device"):
                run(4)
        assert [p.name for p in tmp_path.iterdir()] == ["training.safetensors"]
        assert load_safetensors(tmp_path / "training.safetensors")[1]["efface-state"].startswith('{"step": 2')
        assert torch.equal(run(4)[0], whole)


def test_a_half_written_checkpoint_is_never_read(tmp_path):
    """A kill leaves a temporary file beside the checkpoint; a run neither reads it nor minds it."""
    whole, _ = run(4)
    with checkpoints(tmp_path, every=2):
        with pytest.raises(KeyboardInterrupt):
            run(4, fail_at=3)
        kept = (tmp_path / "training.safetensors").read_bytes()
        (tmp_path / ".training.safetensors.x.tmp").write_bytes(kept[: len(kept) // 2])
        assert torch.equal(run(4)[0], whole)


def test_nothing_is_held_that_the_edit_does_not_need():
    p = nn.Parameter(torch.ones(3))
    state = State({"p": p}, {"main": optimizer("adam", [p], 0.1)})
    descend(lambda step: p.sum(), state, 1, label="", run={})
    assert p.grad is not None
    state.release()
    assert p.grad is None
    assert not state.optimizers


def test_divergence_is_found_at_once():
    with pytest.raises(Diverged, match="fit: the loss is inf at step 2"):
        run(9, "sgd", lr=1e30)
    with pytest.raises(Diverged, match="the gradient is nan at step 1"):
        run(9, power=0.5)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_input(lr):
    with pytest.raises(BadInput, match="lr must be above 0"):
        run(1, lr=lr)
    with pytest.raises(BadInput, match="at least 1"):
        run(0)
    with pytest.raises(BadInput, match="one of adam"):
        run(1, "lion")
    with pytest.raises(BadInput, match="between checkpoints"), checkpoints("x", every=0):
        pass
