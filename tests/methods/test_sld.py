import warnings

import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.errors import BadInput, UnknownName
from efface.methods.sld import SLD, UNSAFE
from efface.models import schedulers
from efface.models.model import Model
from efface.query import Query

QUERIES = [Query("a red bus", seed, 8, solver="ddim") for seed in range(2)]
STRONG = SLD(warmup=2, scale=20.0, threshold=0.5, momentum=0.5, beta=0.7)  # acts visibly on a random model


def guarded(model: Model, method: SLD, erase: str = "church") -> Model:
    return model.guarded(Guard(method, (Concept(erase),)))


def written_out(model: Model, queries: list[Query], sld: SLD, concept: str) -> Tensor:
    """Sample one image at a time by the paper's equations, element by element where they choose."""
    images = []
    for query in queries:
        scheduler = schedulers.ready(model.pipe, query.solver, query.steps, model.device)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(query.seed))
        p, null, s = (model.encode([text]) for text in (query.prompt, "", concept))
        nu = torch.zeros_like(x)
        for i, t in enumerate(scheduler.timesteps):
            e_p, e_null, e_s = (model.denoiser(x, t, encoder_hidden_states=c.tokens).sample for c in (p, null, s))
            phi = sld.scale * (e_p - e_s)
            mu = torch.minimum(phi.abs(), torch.ones_like(phi)) * (e_p < e_s + sld.threshold)
            gamma = mu * (e_s - e_null) + sld.momentum * nu
            nu = sld.beta * nu + (1 - sld.beta) * gamma
            towards = e_p - e_null - (gamma if i >= sld.warmup else 0)
            x = scheduler.step(e_null + query.guidance * towards, t, x).prev_sample
        images.append(model.decode(x))
    return torch.cat(images)


@pytest.mark.parametrize(
    "method", [STRONG, SLD.preset("weak", warmup=0), SLD.preset("max")], ids=["own", "weak", "max"]
)
def test_it_follows_the_equations(tiny: Model, method: SLD):
    ours = guarded(tiny, method).generate(QUERIES)
    assert (ours - written_out(tiny, QUERIES, method, "church")).abs().max() <= 1e-4
    assert (ours - tiny.generate(QUERIES)).abs().max() > 1e-3


def test_it_equals_the_deprecated_pipeline_of_diffusers(tiny: Model):
    module = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe")
    parts = {name: part for name, part in tiny.pipe.components.items() if name != "image_encoder"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        safe = module.StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
        safe.scheduler = schedulers.make(tiny.pipe, "ddim")
        safe._safety_text_concept = "church"
        safe.set_progress_bar_config(disable=True)
        theirs = safe(
            [query.prompt for query in QUERIES],
            num_inference_steps=8,
            generator=[torch.Generator().manual_seed(query.seed) for query in QUERIES],
            output_type="np",
            sld_guidance_scale=STRONG.scale,
            sld_warmup_steps=STRONG.warmup,
            sld_threshold=STRONG.threshold,
            sld_momentum_scale=STRONG.momentum,
            sld_mom_beta=STRONG.beta,
        ).images
    ours = guarded(tiny, STRONG).generate(QUERIES).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() <= 1e-5


def test_scale_zero_is_plain_guidance(tiny: Model):
    off = guarded(tiny, SLD(scale=0.0, warmup=0))
    assert torch.equal(off.generate(QUERIES), tiny.generate(QUERIES))


def test_a_warmup_longer_than_the_run_is_plain_guidance(tiny: Model):
    assert torch.equal(guarded(tiny, SLD(warmup=99)).generate(QUERIES), tiny.generate(QUERIES))


def denoised(model: Model, t: object) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.denoise(x, t, model.encode(["a red bus"]), model.encode([""]))[0]  # pyright: ignore[reportArgumentType]


def test_a_prediction_outside_a_trajectory_counts_its_steps_from_its_time(tiny: Model):
    method = SLD(warmup=20, scale=20.0, threshold=0.5)
    assert torch.equal(denoised(guarded(tiny, method), 700), denoised(tiny, 700))  # step 15 of 50
    assert not torch.equal(denoised(guarded(tiny, method), 500), denoised(tiny, 500))  # step 25 of 50
    assert torch.equal(denoised(guarded(tiny, method), 950), denoised(tiny, 950))


def test_legacy_counts_the_warmup_in_timesteps(tiny: Model):
    method = SLD(warmup=20, scale=20.0, threshold=0.5, legacy=True)
    assert not torch.equal(denoised(guarded(tiny, method), 700), denoised(tiny, 700))
    assert torch.equal(denoised(guarded(tiny, method), 19), denoised(tiny, 19))


def test_presets_are_the_papers():
    assert list(SLD.PRESETS) == ["weak", "medium", "strong", "max", "mini"]
    assert SLD.preset("medium") == SLD()
    assert SLD().preset_name == "medium"
    assert SLD.preset("max", warmup=3).preset_name == ""
    assert SLD.preset("strong").beta == 0.7
    assert len(UNSAFE.split(", ")) == 20
    with pytest.raises(UnknownName, match="did you mean 'medium'"):
        SLD.preset("medum")


@pytest.mark.parametrize(
    "values",
    [{"warmup": -1}, {"scale": -1.0}, {"scale": float("nan")}, {"momentum": 1.5}, {"beta": 1.0}, {"beta": -0.1}],
)
def test_values_out_of_range_are_refused(values: dict):
    with pytest.raises(BadInput, match="must be"):
        SLD(**values)


def test_the_prompt_takes_the_place_of_the_names(tiny: Model):
    by_name = guarded(tiny, STRONG, "dog").generate(QUERIES)
    by_prompt = guarded(tiny, SLD(**{**vars(STRONG), "prompt": "dog"}), "church").generate(QUERIES)
    assert torch.equal(by_name, by_prompt)
    assert isinstance(STRONG(tiny, "church"), Edit)
