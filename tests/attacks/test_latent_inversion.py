"""Latent inversion, and the likelihood of noise."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy import stats

from efface.attack import Target
from efface.attacks.latent_inversion import LatentInversion
from efface.attacks.search.pictures import pictures
from efface.errors import BadInput
from efface.models.inversion import ddim_steps, invert
from efface.models.likelihood import log_likelihood, norm_quantile, psnr
from efface.query import Query
from efface.training.checkpoints import checkpoints

LIKE = Query("a photo of a church", 0, 3, 1.0, solver="ddim")


def test_the_likelihood_of_true_noise_is_near_its_expectation():
    noise = torch.randn(50, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(log_likelihood(noise).mean()) == pytest.approx(-(1 + math.log(2 * math.pi)) / 2, abs=2e-3)
    wanted = torch.from_numpy(stats.norm.logpdf(noise.double().flatten(1)).mean(1))
    torch.testing.assert_close(log_likelihood(noise), wanted)
    quantiles = norm_quantile(noise)
    torch.testing.assert_close(quantiles, torch.from_numpy(stats.chi(4096).cdf(noise.double().flatten(1).norm(dim=1))))
    assert stats.kstest(quantiles.numpy(), "uniform").pvalue > 0.01
    assert float(norm_quantile(1.1 * noise).min()) > 0.999
    assert float(log_likelihood(1.1 * noise).max()) < -1.43


def test_psnr():
    dark = torch.zeros(2, 3, 4, 4)
    assert psnr(dark, torch.tensor([0.1, 0.0]).view(2, 1, 1, 1).expand_as(dark)).tolist() == pytest.approx([20, 120])


@pytest.mark.parametrize("steps", [1, 6, 7])
def test_inversion_is_the_inverse_of_the_solver(tiny, steps):
    """With enough fixed-point iterations; also where the steps do not divide the timesteps."""
    query = replace(LIKE, steps=steps)
    first = tiny.sample([query], stop=0)
    clean, c = tiny.sample([query]), tiny.encode([query.prompt])
    pairs = ddim_steps(tiny, steps)
    with torch.no_grad():
        back = invert(tiny.family.schedule, clean, pairs, lambda x, t: tiny.eps(x, t, c), rounds=12)
        once = invert(tiny.family.schedule, clean, pairs, lambda x, t: tiny.eps(x, t, c))
    torch.testing.assert_close(back, first, atol=2e-3, rtol=0)
    assert float((once - first).abs().mean()) > 5 * float((back - first).abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pix", "pix_xl"])
def test_on_the_original_the_picture_comes_back_from_likely_noise(name, request):
    pix = request.getfixturevalue(name)
    attack = LatentInversion(images=2, rounds=10)
    found = attack(Target(pix.original, None, pix.original), "church", replace(LIKE, solver=""))
    assert min(found.scores) > 40
    near = psnr(found.replay(pix.original), found.tensors["pictures"])
    assert near.tolist() == pytest.approx(found.about["psnr"], abs=0.1)
    assert list(found.scores) == sorted(found.about["psnr"], reverse=True)
    for query, likelihood in zip(found.queries, found.about["log likelihood"], strict=True):
        assert (query.start, query.guidance, query.solver) == (0, 1.0, "ddim")
        assert float(log_likelihood(query.latents)) == pytest.approx(likelihood)
        assert likelihood == pytest.approx(-1.419, abs=0.15)  # 256 numbers
    assert all(0 < q < 1 for q in found.about["norm quantile"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "negative", "sld"])
def test_optimising_brings_the_picture_nearer(pix, kind):
    target, queries = Target(pix.models[kind], None, pix.original), [replace(q, steps=3) for q in pix.queries]
    values = {"images": 2, "rounds": 1, "guidance": None, "lr": 0.03}
    plain = LatentInversion(**values)(target, "church", queries)
    found = LatentInversion(**values, iterations=6)(target, "church", queries)
    assert {query.guidance for query in found.queries} == {3.0}
    assert sum(found.scores) > sum(plain.scores) + 1
    near = psnr(found.replay(target.edited), found.tensors["pictures"])
    assert near.tolist() == pytest.approx(list(found.scores), abs=0.1)


@pytest.mark.parametrize("kind", ["negative", "sld"])
def test_the_inversion_is_guided_as_the_query_is(pix, kind):
    """By hand: both predictions under the guards at every step."""
    model, query = pix.models[kind], replace(pix.queries[0], steps=3)
    found = LatentInversion(images=1, rounds=1, guidance=None)(Target(model, None, pix.original), "church", query)
    clean = pictures(Target(model, None, pix.original), ("a picture of a church",), 1, query, 0)
    c, null = model.encode([query.prompt]), model.null()

    def noise(x, t):
        cond, uncond = model.denoise(x, torch.tensor(t), c, null)
        return uncond + 3.0 * (cond - uncond)

    with torch.no_grad():
        wanted = invert(model.family.schedule, clean, ddim_steps(model, 3), noise, 1)
    torch.testing.assert_close(found.queries[0].latents, wanted, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_more_rounds_bring_the_picture_nearer(pix):
    target = Target(pix.edited, None, pix.original)
    few, many = (LatentInversion(images=2, rounds=n)(target, "church", LIKE) for n in (0, 6))
    assert min(many.scores) > max(few.scores)
    assert few.cost == {"images": 4, "calls": 6 + 6 * 2, "backward": 0}


@pytest.mark.slow
def test_a_folder_batches_and_resume(pix, tmp_path):
    for i in range(3):
        pixels = (pix.judge.images[i % 2] * (255 - 60 * i)).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    target = Target(pix.edited)
    values = {"folder": str(tmp_path), "iterations": 2, "rounds": 1}
    one = LatentInversion(**values)(target, "church", LIKE)
    assert len(one.queries) == 3
    with checkpoints(tmp_path / "run"):
        two = LatentInversion(**values, batch=2)(target, "church", LIKE)
        again = LatentInversion(**values, batch=2)(target, "church", LIKE)
    assert two.queries == again.queries
    assert one.scores == pytest.approx(two.scores, abs=0.1)
    with pytest.raises(BadInput, match="no images in"):
        LatentInversion(folder=str(tmp_path / "none"))(target, "church", LIKE)
    with pytest.raises(BadInput, match="needs pictures of the concept"):
        LatentInversion()(target, "church", LIKE)
