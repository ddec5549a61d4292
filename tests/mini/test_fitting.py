"""The training loop of mini's parts: it learns, and a stopped training resumes to the same weights, bit for bit."""

from itertools import pairwise

import torch
from torch import nn

from efface.mini.fitting import Fitting, rate


def run(path, steps, total):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    fitting = Fitting(net, path, lr=1e-2)
    losses = []

    def loss(step, g):
        x = torch.randn(16, 4, generator=g)
        value = (net(x)[:, 0] - x.sum(1)).square().mean()
        losses.append(value.item())
        return value

    for stop in steps:
        fitting.run(loss, stop) if stop == total else _part(fitting, loss, stop, total)
    return fitting, losses


def _part(fitting, loss, stop, total):
    """Run the first `stop` of `total` steps: the rate depends on the whole."""

    class Stop(Exception):
        pass

    def until(step, g):
        if step == stop:
            raise Stop
        return loss(step, g)

    try:
        fitting.run(until, total)
    except Stop:
        fitting.save()


def test_learns(tmp_path):
    _, losses = run(tmp_path / "net.safetensors", [300], 300)
    assert losses[-1] < 0.2 * losses[0]


def test_resumes_bit_for_bit(tmp_path):
    whole, _ = run(tmp_path / "a.safetensors", [40], 40)
    run(tmp_path / "b.safetensors", [17], 40)
    resumed, losses = run(tmp_path / "b.safetensors", [40], 40)
    assert len(losses) == 23
    for name, p in whole.params.items():
        assert torch.equal(p, resumed.params[name])
        assert torch.equal(whole.average[name], resumed.average[name])
    for (name, a), (_, b) in zip(whole.module.named_buffers(), resumed.module.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_average_is_used_when_asked(tmp_path):
    fitting, _ = run(tmp_path / "net.safetensors", [20], 20)
    average = {n: t.clone() for n, t in fitting.average.items()}
    module = fitting.use_average()
    assert not module.training
    assert all(torch.equal(p, average[n]) for n, p in module.named_parameters())


def test_rate_warms_up_stays_and_cools():
    rates = [rate(step, 10_000, 1.0) for step in range(10_000)]
    assert rates[0] < 0.01
    assert rates[5000] == 1.0
    assert rates[-1] <= 0.011
    assert all(a >= b for a, b in pairwise(rates[7500:]))
