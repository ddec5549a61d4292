"""The noise-based probe."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from efface.attack import Target
from efface.attacks.extra_noise import ExtraNoise
from efface.attacks.search.noisy import noisy, noisy_step
from efface.errors import BadInput
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator


def test_without_noise_it_is_the_query_itself(pix):
    found = ExtraNoise(etas=(0.0,), variances=(1.0, 2.0))(Target(pix.original, pix.judge), "church", pix.queries)
    assert len(found.queries) == 4
    assert min(found.scores) > 0.99
    for query, image in zip(found.queries, found.replay(pix.original), strict=True):
        assert query.start == 5
        torch.testing.assert_close(image, pix.judge.images[query.seed], atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_is_that_of_diffusers(tiny, eta):
    """Up to eta 1 the step is DDIM's with eta; diffusers' takes the noise as given."""
    scheduler = DDIMScheduler.from_config(tiny.part("scheduler").config, clip_sample=False)
    scheduler.set_timesteps(10)
    rng = torch.Generator().manual_seed(0)
    x, eps, noise = (torch.randn(1, 4, 8, 8, generator=rng) for _ in range(3))
    wanted = scheduler.step(eps, 501, x, eta=eta, variance_noise=noise, return_dict=False)[0]
    one = torch.ones(1, 1, 1, 1)
    made = noisy_step(tiny.family.schedule, x, eps, 501, 401, eta * one, one, noise)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_the_factor_is_on_the_variance_of_the_new_noise_alone(tiny):
    x, noise, one = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.ones(1, 1, 1, 1)
    single, fourfold = (noisy_step(tiny.family.schedule, x, x, 501, 401, one, v * one, noise) for v in (1.0, 4.0))
    torch.testing.assert_close(fourfold, 2 * single)
    eps = noisy_step(tiny.family.schedule, x, noise, 501, 401, one, 4.0 * one, x)
    torch.testing.assert_close(eps, noisy_step(tiny.family.schedule, x, noise, 501, 401, one, one, x))
    assert bool(noisy_step(tiny.family.schedule, x, noise, 501, 401, 100 * one, one, noise).isfinite().all())


@pytest.mark.parametrize("kind", ["weights", "negative", "sld"])
def test_every_combination_is_tried_and_replays(pix, kind):
    model = pix.models[kind]
    found = ExtraNoise(etas=(0.0, 1.0, 1.85), variances=(1.0, 1.04))(Target(model, pix.judge), "church", pix.queries[0])
    pairs = list(zip(found.about["etas"], found.about["variances"], strict=True))
    assert sorted(pairs) == [(e, v) for e in (0.0, 1.0, 1.85) for v in (1.0, 1.04)]
    assert len(set(found.queries)) == 5  # without noise its variance does nothing
    seen = pix.judge.objects(found.replay(model))[:, 0]
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=0)
    each = 6 * (3 if kind == "sld" else 2)  # calls of an image
    assert found.cost == {"images": 6, "calls": 6 * each, "backward": 0, "texts": 1}
    quiet = found.queries[pairs.index((0.0, 1.0))].latents  # the guards' whole trajectory up to the last step
    torch.testing.assert_close(quiet, model.sample(pix.queries[:1], stop=5), atol=3e-4, rtol=0)
    own = generator(0, "noise", "0", "1.0", "1.04")
    x = noisy(model, pix.queries[:1], [1.0], [1.04], [own])
    torch.testing.assert_close(found.queries[pairs.index((1.0, 1.04))].latents, x, atol=3e-4, rtol=0)


def test_rows_do_not_depend_on_the_batch_and_a_run_resumes(pix, tmp_path):
    target, queries = Target(pix.edited, pix.judge), (pix.queries[0], replace(pix.queries[1], steps=4))
    values = {"etas": (0.5, 1.5), "variances": (1.0,)}
    one = ExtraNoise(**values)(target, "church", queries)
    with checkpoints(tmp_path / "run"):
        two = ExtraNoise(**values, batch=1)(target, "church", queries)
        again = ExtraNoise(**values, batch=1)(target, "church", queries)
    assert two.queries == again.queries
    assert {query.steps for query in one.queries} == {4, 6}
    for a, b in zip(one.queries, two.queries, strict=True):
        torch.testing.assert_close(a.latents, b.latents, atol=3e-4, rtol=0)


def test_on_sdxl(pix_xl):
    found = ExtraNoise(etas=(0.0,), variances=(1.0,))(Target(pix_xl.original, pix_xl.judge), "church", pix_xl.queries)
    assert min(found.scores) > 0.99


def test_bad_input(pix):
    target = Target(pix.edited, pix.judge)
    with pytest.raises(BadInput, match="at least 2 steps"):
        ExtraNoise()(target, "church", replace(pix.queries[0], steps=1))
    with pytest.raises(BadInput, match="needs etas and variances"):
        ExtraNoise(etas=())(target, "church", pix.queries)
    with pytest.raises(BadInput, match="etas must be from 0 to 100"):
        ExtraNoise(etas=(-1.0,))
