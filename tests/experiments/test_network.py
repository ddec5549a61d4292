"""Networks trained from nothing: they learn, and a stopped training goes on to the same weights, bit for bit."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from efface.errors import BadInput
from efface.training.checkpoints import read, trained
from experiments import network


def fit(path, steps, stop=None, seconds=0.001, **options):
    """Learn the sum of four numbers; a network with buffers and dropout. Return (network, state, losses)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
    losses = []

    def loss(g, _):
        if len(losses) == stop:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=g)
        value = (net(x)[:, 0] - x.sum(1)).square().mean()
        losses.append(value.item())
        return value

    return net, network.train(net, path, loss, steps, lr=1e-2, seconds=seconds, **options), losses


def test_learns(tmp_path):
    _, state, losses = fit(tmp_path / "net.safetensors", 300, seconds=60.0)
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert state.history["loss"] == losses


def test_resumes_bit_for_bit(tmp_path):
    whole, state, _ = fit(tmp_path / "a.safetensors", 40)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b" / "a.safetensors", 40, stop=17)
    done = read(tmp_path / "b" / "a.safetensors")[2]["step"]
    assert 0 < done <= 17  # by time, not by step
    resumed, again, losses = fit(tmp_path / "b" / "a.safetensors", 40)
    assert len(losses) == 40 - done
    assert again.history == state.history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, value in state.tensors.items():
        assert torch.equal(value, again.tensors[name]), name


def test_a_finished_training_can_be_made_longer_but_not_another_one(tmp_path):
    fit(tmp_path / "net.safetensors", 4)
    _, state, losses = fit(tmp_path / "net.safetensors", 6)
    assert (state.step, len(losses)) == (6, 2)
    with pytest.raises(BadInput, match="to another run: seed is 0 there and 1 here"):
        fit(tmp_path / "net.safetensors", 6, seed=1)


def test_the_averaged_weights_are_read_back_frozen(tmp_path):
    net, state, _ = fit(tmp_path / "net.safetensors", 20)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
    loaded = network.load_averaged(fresh, tmp_path / "net.safetensors")
    assert not loaded.training
    for name, p in loaded.named_parameters():
        assert not p.requires_grad
        assert torch.equal(p, state.tensors[f"average.{name}"])
        assert not torch.equal(p, net.get_parameter(name))
    for name, b in loaded.named_buffers():
        assert torch.equal(b, net.get_buffer(name))
    part = network.load_averaged(nn.Linear(4, 8), tmp_path / "net.safetensors", "0.")
    assert torch.equal(part.weight, loaded[0].weight)


def _worker(rank, meeting, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    net, _, losses = fit(path, 20)
    torch.save((net.state_dict(), losses), path.with_suffix(f".{rank}"))
    dist.destroy_process_group()


def test_two_processes_see_other_data_and_end_with_the_same_weights(tmp_path):
    path = tmp_path / "net.safetensors"
    mp.spawn(_worker, (str(tmp_path / "meeting"), path), nprocs=2)
    (one, losses), (two, others) = (torch.load(path.with_suffix(f".{rank}")) for rank in (0, 1))
    assert losses[0] != others[0]
    weights = [name for name in one if "running" not in name]
    assert all(torch.equal(one[name], two[name]) for name in weights)  # the last step is one of meeting
    assert torch.equal(trained(path, "weight.")["0.weight"], one["0.weight"])
