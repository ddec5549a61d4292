"""Stable Diffusion 3: equal to diffusers' own pipeline, and edited, trained, guarded, attached and saved."""

import copy
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from efface.errors import BadInput, BadModel
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.uce import UCE
from efface.models.attach import attach
from efface.models.family import family_of
from efface.models.model import Model
from efface.query import Query

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny.py")))


def make_pipe(**transformer) -> StableDiffusion3Pipeline:
    """Make a random pipeline with the layout of SD3.5 medium: the first block has a second attention, of the image.

    Both CLIPs are 16 wide, T5 is 40, so that a context is (16 + 16, 40), and the CLIPs' rows are padded by 8 zeros.
    """
    torch.manual_seed(11)
    first, second, third = tiny.words(), tiny.words("!"), tiny.t5_words()
    plain = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 40, "caption_projection_dim": 32,
        "pooled_projection_dim": 32, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**{**plain, **transformer}).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny.clip(CLIPTextModelWithProjection, first, 16),
        text_encoder_2=tiny.clip(CLIPTextModelWithProjection, second, 16, hidden_act="gelu"),
        text_encoder_3=tiny.t5(third, 40),
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=third,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sd3(tiny_of) -> Model:
    """Return a random tiny SD3: 16 + 16 tokens of 40 channels, pooled vectors of 32, latents 4×8×8."""
    return tiny_of("sd3")


def queries(guidance: float = 7.0) -> list[Query]:
    return [Query("a church", 3, 4, guidance), Query("a red bus", 4, 4, guidance)]


def own(model: Model):
    """Return a pipeline that shares nothing that attaching changes with the test session's."""
    pipe = copy.copy(model.pipe)
    pipe.transformer = copy.deepcopy(model.denoiser)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return pipe


def by_pipeline(pipe, queries: list[Query], **options) -> Tensor:
    """Generate with the diffusers pipeline; the queries share steps and guidance."""
    return pipe(
        [query.prompt for query in queries],
        num_inference_steps=queries[0].steps,
        guidance_scale=queries[0].guidance,
        generator=[torch.Generator().manual_seed(query.seed) for query in queries],
        max_sequence_length=16,
        height=16,
        width=16,
        output_type="pt",
        **options,
    ).images


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_images_equal_those_of_the_pipeline(sd3: Model, guidance: float):
    ours = sd3.generate(queries(guidance))
    assert (ours - by_pipeline(own(sd3), queries(guidance))).abs().max() <= 1e-5
    assert (ours[0] - sd3.generate([Query("a dog", 3, 4, guidance)])[0]).abs().max() > 1e-3
    named = [replace(query, solver="ddim") for query in queries(guidance)]
    assert torch.equal(sd3.generate(named), ours)


def test_images_equal_those_of_the_pipeline_with_a_shift_by_size(sd3: Model):
    pipe = own(sd3)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=4)
    ours = Model(pipe).generate(queries())
    assert (ours - by_pipeline(pipe, queries())).abs().max() <= 1e-5
    assert (ours - sd3.generate(queries())).abs().max() > 1e-3


def test_without_t5_its_tokens_are_zeros_as_in_the_pipeline(sd3: Model, tmp_path: Path):
    pipe = own(sd3)
    pipe.text_encoder_3, pipe.tokenizer_3 = None, None
    pipe.register_to_config(text_encoder_3=(None, None), tokenizer_3=(None, None))
    bare = Model(pipe)
    c = bare.encode(["a church"])
    assert c.tokens.shape == (1, 16 + 256, 40)
    assert not c.tokens[:, 16:].any()
    assert len(bare.family.streams("a church")) == 1
    pipe.tokenizer_max_length = 16
    theirs = pipe(
        ["a church"], num_inference_steps=2, height=16, width=16, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert (bare.generate([Query("a church", 0, 2, 7.0)]) - theirs).abs().max() <= 1e-5
    pipe.save_pretrained(tmp_path / "bare")
    again = Model.load(tmp_path / "bare")
    assert (again.generate([Query("a church", 0, 2, 7.0)]) - theirs).abs().max() <= 1e-5


def test_the_context_is_that_of_the_pipeline(sd3: Model):
    theirs, _, pooled, _ = sd3.pipe.encode_prompt(
        ["a church", "a dog"], None, None, do_classifier_free_guidance=False, max_sequence_length=16
    )
    ours = sd3.encode(["a church", "a dog"])
    assert torch.equal(ours.tokens, theirs)
    assert ours.pooled is not None
    assert torch.equal(ours.pooled, pooled)
    assert ours.guidance is None
    assert not ours.tokens[:, :16, 32:].any()  # the padding of CLIP's rows
    assert ours.tokens[:, 16:, 32:].any()


def test_streams_are_clips_tokens_and_then_t5s(sd3: Model):
    clip, t5 = sd3.family.streams("a red church")
    assert (clip.start, clip.first, clip.subject, clip.eos, len(clip.ids)) == (0, 1, 3, 4, 16)
    assert (t5.start, t5.first, t5.subject, t5.eos, len(t5.ids)) == (16, 0, 2, 3, 16)
    assert sd3.pipe.tokenizer_3.convert_ids_to_tokens(t5.words) == ["▁a", "▁red", "▁church"]
    assert (sd3.family.streams("")[1].subject, sd3.family.streams("")[1].eos) == (-1, 0)


def test_the_denoisers_arguments_go_both_ways(sd3: Model):
    c, x, t = sd3.encode(["a church", "a dog"]), torch.randn(2, 4, 8, 8), torch.tensor([300.0, 700.0])
    latents, rest = sd3.family.inputs(x, t)
    given = {"hidden_states": latents, **rest, **sd3.family.arguments(c, 2)}
    back = sd3.family.context_of(given)
    assert torch.equal(back.tokens, c.tokens)
    assert torch.equal(back.pooled, c.pooled)  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(a, b) for a, b in zip(sd3.family.inputs_of(given), (x, t), strict=True))


def test_it_is_recognised_and_what_does_not_fit_is_refused(sd3: Model):
    assert type(sd3.family).TITLE == "Stable Diffusion 3 and 3.5"
    assert sd3.latent_shape == (4, 8, 8)
    assert sd3.family.image_size == 16
    with pytest.raises(BadInput, match=r"takes steps of Euler's method only.*got 'dpm\+\+'"):
        sd3.generate([Query("a church", 0, 2, solver="dpm++")])
    with pytest.raises(BadInput, match="reads no guidance scale as a number"):
        sd3.generate([Query("a church", 0, 2, embedded=2.0)])
    for name, value, match in (
        ("scheduler", DDIMScheduler(), "a DDIMScheduler does not sample one"),
        ("text_encoder_2", None, "text_encoder_2 is missing"),
    ):
        pipe = own(sd3)
        setattr(pipe, name, value)
        with pytest.raises(BadModel, match=match):
            family_of(pipe).check()


METHODS = {
    "uce": UCE(pooled=True),
    "esd": ESD(steps=2, ddim_steps=3, lr=1e-3),
    "negative": NegativePrompt(),
    "sld": SLD.preset("max"),
    "map": UCE(),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_attaches_to_the_pipeline(sd3: Model, name: str):
    edit = METHODS[name](sd3, ["church"])
    edit = edit.as_guard() if name == "map" else edit
    with edit.applied(sd3) as edited:
        images = edited.generate(queries())
    assert (images[0] - sd3.generate(queries())[0]).abs().max() > 1e-3
    pipe = own(sd3)
    attach(edit, pipe)
    assert (by_pipeline(pipe, queries()) - images).abs().max() <= 1e-5


def test_a_transformer_that_reads_other_channels_is_refused(sd3: Model):
    pipe = own(sd3)
    pipe.transformer = SD3Transformer2DModel.from_config({**sd3.denoiser.config, "in_channels": 8})
    with pytest.raises(BadModel, match="reads 8 channels and the autoencoder has 4"):
        family_of(pipe).check()
    pipe.transformer = SD3Transformer2DModel.from_config({**sd3.denoiser.config, "sample_size": 7})
    with pytest.raises(BadModel, match="sample_size in the transformer's configuration is 7: it must be a multiple"):
        family_of(pipe).check()
