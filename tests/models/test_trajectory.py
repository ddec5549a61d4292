import pytest
import torch

from efface.errors import BadInput
from efface.models.trajectory import partly_denoise
from efface.query import Query
from efface.training.loop import generator


def draw(model, rows=3, **options):
    """Generate with a guide that records every call of the network."""
    context = model.encode(["church"])
    calls = []

    def guide(z, t, row, cond, uncond):
        calls.append((row.tolist(), t.tolist()))
        return uncond + 3.0 * (cond - uncond)

    n = rows * options.get("reuse", 1)
    drawn = partly_denoise(model, context, model.encode([""]), generator(7), n, 3.0, 5, guide=guide, **options)
    return drawn, calls


def test_a_trajectory_is_that_of_the_sampler(tiny):
    """Stopped at the same timestep, z_t is what `Model.sample` with DDIM has there."""
    drawn, _ = draw(tiny, rows=1, jitter=False)
    times = tiny.timesteps(5, "ddim").tolist()
    stop = times.index(int(drawn.t))
    rng = generator(7)
    torch.randint(1, (1,), generator=rng)  # which context
    noise = torch.randn(1, *tiny.latent_shape, generator=rng)
    query = Query("church", steps=5, guidance=3.0, solver="ddim")
    reference = tiny.sample([query], stop=stop, latents=noise)
    assert stop > 0
    torch.testing.assert_close(drawn.z, reference, atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_each_other_and_leave_when_done(tiny):
    drawn, calls = draw(tiny, jitter=False)
    assert sum(len(rows) for rows, _ in calls) == sum(4 - (int(t) - 1) // 200 for t in drawn.t)
    assert [len(rows) for rows, _ in calls] == sorted((len(rows) for rows, _ in calls), reverse=True)


def test_reuse_takes_several_latents_of_one_trajectory(tiny):
    drawn, calls = draw(tiny, rows=1, reuse=4, jitter=False)
    assert drawn.z.shape == (4, 4, 8, 8)
    assert len(calls) == 4 - (int(drawn.t.min()) - 1) // 200
    same = (drawn.t[:, None] == drawn.t[None]).triu(1).nonzero().tolist()
    assert all(torch.equal(drawn.z[i], drawn.z[j]) for i, j in same)


def test_jitter_stays_in_the_bin(tiny):
    context, null = tiny.encode(["church", "dog"]), tiny.encode([""])
    bins = partly_denoise(tiny, context, null, generator(1), 64, 1.0, 2, jitter=False).t
    times, row = partly_denoise(tiny, context, null, generator(1), 64, 1.0, 2)[1:]
    assert set(row.tolist()) == {0, 1}
    assert set(bins.tolist()) == {1, 501}
    assert torch.equal(times // 500, bins // 500)
    assert len(times.unique()) > 32


def test_guidance_one_skips_the_unconditional_half(tiny, monkeypatch):
    context, null = tiny.encode(["church", "dog"]), tiny.encode([""])
    full = partly_denoise(tiny, context, null, generator(2), 2, 1.0, 4, guide=lambda z, t, row, cond, null: cond)
    monkeypatch.setattr(type(tiny), "denoise", None)
    torch.testing.assert_close(partly_denoise(tiny, context, null, generator(2), 2, 1.0, 4).z, full.z)


def test_bad_input(tiny):
    with pytest.raises(BadInput, match="reuse"):
        partly_denoise(tiny, tiny.encode(["church"]), tiny.encode([""]), generator(2), 2, reuse=0)
