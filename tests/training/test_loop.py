import errno
import os
from itertools import pairwise

import pytest
import torch
from torch import nn

from efface.errors import BadFile, BadInput, WriteError
from efface.training.checkpoints import Checkpoints, State, checkpoints, current, read, trained
from efface.training.loop import Average, Diverged, descend, generator, optimizer, warmup_and_cooldown
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


def test_accumulated_gradients_are_their_mean():
    def noisy(draws: int, accumulate: int) -> torch.Tensor:
        p = nn.Parameter(torch.ones(3))
        state = State({"p": p}, {"main": optimizer("sgd", [p], 0.1)})

        def loss(draw):
            each = range(draw * draws, (draw + 1) * draws)
            return torch.stack([((p - torch.randn(3, generator=generator(5, i))) ** 2).sum() for i in each]).mean()

        descend(loss, state, 3, label="fit", run={}, accumulate=accumulate)
        assert len(state.history["loss"]) == 3
        return torch.cat([p.detach(), torch.tensor(state.history["loss"])])

    torch.testing.assert_close(noisy(draws=1, accumulate=4), noisy(draws=4, accumulate=1))
    assert not torch.allclose(noisy(draws=1, accumulate=1), noisy(draws=4, accumulate=1))


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
    """The last whole checkpoint stays, no partial file does, and with space again the run resumes from it."""
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
    """Data is on disk only after fsync; a file that fails there never gets the checkpoint's name."""
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
    """A kill leaves a temporary file beside the checkpoint; a run ignores it."""
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
    with pytest.raises(BadInput, match="between checkpoints"), checkpoints("x", every=-1):
        pass


def test_the_rate_of_every_step_is_the_optimizers():
    p = nn.Parameter(torch.zeros(1))
    state = State({"p": p}, {"main": optimizer("sgd", [p], 1.0)})
    values = []
    descend(
        lambda step: p.sum(),
        state,
        3,
        label="",
        run={},
        rate=lambda step: 0.5**step,
        updated=lambda: values.append(float(p.detach())),
    )
    assert values == [-1.0, -1.5, -1.75]


def test_the_rate_warms_up_stays_and_cools():
    rate = warmup_and_cooldown(1.0, 10_000)
    rates = [rate(step) for step in range(10_000)]
    assert rates[0] < 0.01
    assert rates[5000] == 1.0
    assert rates[-1] <= 0.011
    assert all(a >= b for a, b in pairwise(rates[7500:]))


def test_the_average_forgets_its_start_and_then_lags():
    p = torch.zeros(2)
    average = Average({"p": p}, decay=0.5)
    expected = 0.0
    for step in range(20):
        p.fill_(step)
        average.move(step)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.values["p"], torch.full((2,), expected))


def test_betas_and_the_fused_step_are_adams():
    p = nn.Parameter(torch.ones(2))
    group = optimizer("adamw", [p], 0.1, betas=(0.9, 0.99), fused=True).param_groups[0]
    assert (group["betas"], group["fused"]) == ((0.9, 0.99), True)
    group = optimizer("adam", [p], 0.1).param_groups[0]
    assert (group["betas"], group["eps"], group["fused"]) == ((0.9, 0.999), 1e-8, None)


def test_checkpoints_that_are_slow_to_write_are_rare(tmp_path):
    """Without a number of steps, writing may take a twentieth of the time; the number of the user is kept."""
    chosen, given = Checkpoints(tmp_path), Checkpoints(tmp_path, every=25)
    assert [chosen.due(step, 1.0) for step in (24, 25, 50)] == [False, True, True]
    chosen.cost = given.cost = 60.0
    assert [chosen.due(50, seconds) for seconds in (1.0, 1199.0, 1200.0)] == [False, False, True]
    assert given.due(50, 1.0)


def test_checkpoints_by_seconds_do_not_count_steps(tmp_path):
    by_steps, by_seconds = Checkpoints(tmp_path, every=3), Checkpoints(tmp_path, every=3, seconds=60.0)
    assert [by_steps.due(step, 1000.0) for step in (2, 3, 4)] == [False, True, False]
    assert [by_seconds.due(3, seconds) for seconds in (59.0, 60.0)] == [False, True]
    with checkpoints(tmp_path, seconds=3600.0):
        with pytest.raises(KeyboardInterrupt):
            run(9, fail_at=8)
        assert not list(tmp_path.iterdir())
        run(9)
    assert read(tmp_path / "training.safetensors")[2]["step"] == 9  # the end is always saved
    assert set(trained(tmp_path / "training.safetensors", "")) == {"p"}
    with pytest.raises(BadInput, match="seconds between checkpoints"), checkpoints(tmp_path, seconds=-1.0):
        pass
