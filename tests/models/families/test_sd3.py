"""Stable Diffusion 3: equal to diffusers' own pipeline, and edited, trained, guarded, attached and saved."""

import copy
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from efface.edits.edit import Edit
from efface.errors import BadInput, BadModel
from efface.methods.closed_form.stream import erase
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.uce import UCE
from efface.models.attach import attach
from efface.models.family import family_of
from efface.models.files import stream
from efface.models.model import Model
from efface.query import Query
from efface.util.files import save_safetensors

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


# --- single files ---
@pytest.fixture(scope="module")
def big() -> Model:
    """Return a random SD3 with one head of 64 channels, as the original layout needs."""
    wide = {"attention_head_dim": 64, "num_attention_heads": 1, "caption_projection_dim": 64}
    return Model(make_pipe(**wide))


@pytest.fixture(scope="module")
def home(big: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with that model as one file, and its tokenizers beside it."""
    path = tmp_path_factory.mktemp("sd3")
    save_safetensors(path / "all.safetensors", original(big), {"modelspec.resolution": "16x16"})
    for name in ("tokenizer", "tokenizer_3"):
        big.part(name).save_pretrained(path / name)
    return path


def original(model: Model) -> dict[str, Tensor]:
    """Return a model's tensors in the original layout, put together from the places that the family names."""
    configs = {"transformer": model.denoiser.config, "vae": model.part("vae").config}
    found: dict[str, dict[str, Tensor]] = {}
    for part in model.family.PARTS:
        for name, value in model.part(part).state_dict().items():
            key, view = model.family.original_key(f"{part}.{name}", configs)
            found.setdefault(key, {})[view] = value
    tensors = {}
    for key, views in found.items():
        if "q" in views:
            tensors[key] = torch.cat([views[third] for third in "qkv"])
        elif "swapped" in views:
            tensors[key] = torch.cat(views["swapped"].chunk(2)[::-1])
        else:
            (value,) = views.values()
            tensors[key] = value[:, :, None, None] if "matrix" in views else value
    return {key: value.clone() for key, value in tensors.items()}


def test_places_in_the_original_layout_are_those_that_diffusers_converts(big: Model):
    from diffusers.loaders import single_file_utils as theirs

    tensors = original(big)
    own = {key: value for key, value in tensors.items() if key.startswith("model.diffusion_model.")}
    found = theirs.convert_sd3_transformer_checkpoint_to_diffusers(own)
    found |= {
        f"vae.{k}": v for k, v in theirs.convert_ldm_vae_checkpoint(dict(tensors), big.part("vae").config).items()
    }
    for part, prefix in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        clip = theirs.convert_ldm_clip_checkpoint(tensors, f"text_encoders.{prefix}.transformer.")
        found |= {f"{part}.{name}": value for name, value in clip.items()}
    found |= {
        f"text_encoder_3.{name}": value
        for name, value in theirs.convert_sd3_t5_checkpoint_to_diffusers(tensors).items()
    }
    wanted = dict(big.denoiser.state_dict())
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        wanted |= {f"{part}.{name}": value for name, value in big.part(part).state_dict().items()}
    plain = {name.replace(".text_model.", "."): value for name, value in found.items()}
    for name, value in wanted.items():
        if name != "text_encoder_3.encoder.embed_tokens.weight":  # tied
            assert torch.equal(plain[name.replace(".text_model.", ".")], value), name


def test_a_single_file_is_the_model_it_was_made_from(big: Model, home: Path):
    loaded = Model.load(home / "all.safetensors", tokenizer=home / "tokenizer")
    ours, theirs = loaded.weights(""), big.weights("")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.generate(queries()) - big.generate(queries())).abs().max() <= 1e-5
    edit = UCE()(big, ["church"])
    assert UCE()(loaded, ["church"]) == edit
    assert erase(UCE(), home / "all.safetensors", ["church"], tokenizer=home / "tokenizer") == edit


def test_an_edited_copy_of_a_single_file_has_the_edit_where_it_belongs(big: Model, home: Path, tmp_path: Path):
    names = [
        "transformer.norm_out.linear.weight",  # stored with its halves swapped
        "transformer.transformer_blocks.0.attn.add_k_proj.weight",  # a third of a tensor
        "transformer.context_embedder.weight",
    ]
    delta = {name: torch.randn(big.weights()[name].shape, generator=torch.Generator().manual_seed(0)) for name in names}
    stream.write(Edit(delta=delta), home / "all.safetensors", tmp_path / "copy.safetensors")
    copy, old = Model.load(tmp_path / "copy.safetensors", tokenizer=home / "tokenizer").weights(""), big.weights("")
    for name, value in copy.items():
        torch.testing.assert_close(value, old[name] + delta.get(name, 0), atol=1e-6, rtol=1e-6)


def test_a_single_file_without_encoders_is_refused_and_one_without_t5_is_not(big: Model, home: Path, tmp_path: Path):
    tensors = original(big)
    clips = {key: value for key, value in tensors.items() if "t5xxl" not in key}
    save_safetensors(tmp_path / "clips.safetensors", clips, {"modelspec.resolution": "16x16"})
    loaded = Model.load(tmp_path / "clips.safetensors", tokenizer=home / "tokenizer")
    assert loaded.part("text_encoder_3") is None
    assert not loaded.encode(["a church"]).tokens[:, 16:].any()
    bare = {key: value for key, value in tensors.items() if "text_encoders" not in key}
    save_safetensors(tmp_path / "bare.safetensors", bare)
    with pytest.raises(BadModel, match="it has no text encoders: give a checkpoint that includes them"):
        Model.load(tmp_path / "bare.safetensors", tokenizer=home / "tokenizer")
    shutil.copytree(home / "tokenizer", tmp_path / "alone" / "tokenizer")
    with pytest.raises(BadModel, match="needs T5's vocabulary, which is not in the file"):
        Model.load(
            shutil.copy(home / "all.safetensors", tmp_path / "alone"), tokenizer=tmp_path / "alone" / "tokenizer"
        )
