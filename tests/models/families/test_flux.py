"""FLUX.1 dev and schnell: equal to diffusers' own pipeline, and edited, trained, guarded, attached and saved."""

import copy
import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel

from efface.cli import images
from efface.cli.app import run
from efface.cli.options import Common
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadModel
from efface.finding import Finding
from efface.method import Method
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.task_vector import TaskVector
from efface.methods.uce import UCE
from efface.models.attach import attach
from efface.models.families.flux import pack, unpack
from efface.models.family import family_of
from efface.models.model import Model
from efface.query import Query
from efface.util.files import save_safetensors

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny.py")))


def make_pipe(guidance: bool = True) -> FluxPipeline:
    """Make a random pipeline with the layout of FLUX.1 dev, or, without guidance, of schnell.

    T5 is 40 wide, CLIP 24; latents are 4×8×8, which are 16 tokens of 16 channels.
    """
    torch.manual_seed(12)
    first, second = tiny.words(), tiny.t5_words()
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=40,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance),
        vae=tiny.vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny.clip(CLIPTextModel, first, 24),
        text_encoder_2=tiny.t5(second, 40),
        tokenizer=first,
        tokenizer_2=second,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def flux(tiny_of) -> Model:
    """Return a random tiny FLUX.1 dev: 16 tokens of 40 channels, pooled vectors of 24, latents 4×8×8."""
    return tiny_of("flux")


@pytest.fixture(scope="module")
def schnell() -> Model:
    """Return a random tiny FLUX.1 schnell."""
    return Model(make_pipe(guidance=False))


def queries(guidance: float = 1.0, embedded: float | None = None) -> list[Query]:
    return [Query(text, seed, 4, guidance, embedded=embedded) for text, seed in (("a church", 3), ("a red bus", 4))]


def own(model: Model):
    """Return a pipeline that shares nothing that attaching changes with the test session's."""
    pipe = copy.copy(model.pipe)
    pipe.transformer = copy.deepcopy(model.denoiser)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return pipe


def by_pipeline(pipe, queries: list[Query], **options) -> Tensor:
    """Generate with the diffusers pipeline; the queries share steps and both kinds of guidance."""
    true = {"true_cfg_scale": queries[0].guidance, "negative_prompt": [""] * len(queries)}
    return pipe(
        [query.prompt for query in queries],
        num_inference_steps=queries[0].steps,
        guidance_scale=3.5 if queries[0].embedded is None else queries[0].embedded,
        generator=[torch.Generator().manual_seed(query.seed) for query in queries],
        max_sequence_length=16,
        height=16,
        width=16,
        output_type="pt",
        **({} if queries[0].guidance == 1 else true),
        **options,
    ).images


@pytest.mark.parametrize("embedded", [None, 1.0, 7.0])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_images_equal_those_of_the_pipeline(flux: Model, guidance: float, embedded: float | None):
    asked = queries(guidance, embedded)
    ours = flux.generate(asked)
    assert (ours - by_pipeline(own(flux), asked)).abs().max() <= 1e-5
    assert (ours[0] - flux.generate([replace(asked[0], prompt="a dog")])[0]).abs().max() > 1e-3
    assert (ours - flux.generate(queries(guidance, 2.0))).abs().max() > 1e-4


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_images_of_schnell_equal_those_of_the_pipeline(schnell: Model, guidance: float):
    ours = schnell.generate(queries(guidance))
    assert (ours - by_pipeline(own(schnell), queries(guidance))).abs().max() <= 1e-5
    assert schnell.encode(["a church"]).guidance is None


def test_noise_levels_are_those_of_the_formula(flux: Model, schnell: Model):
    s = torch.linspace(1, 0.25, 4)
    mu = 0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256)  # 16 tokens of an image
    torch.testing.assert_close(flux.timesteps(4) / 1000, mu_shifted(s, mu))
    torch.testing.assert_close(schnell.timesteps(4) / 1000, s)


def mu_shifted(s: Tensor, mu: float) -> Tensor:
    e = torch.tensor(mu).exp()
    return e / (e + 1 / s - 1)


def test_queries_of_several_scales_share_a_batch(flux: Model):
    asked = [*queries(1.0, 1.0), *queries(1.0, None)]
    each = torch.cat([flux.generate([query]) for query in asked])
    assert (flux.generate(asked) - each).abs().max() <= 1e-5


def test_the_context_is_that_of_the_pipeline(flux: Model):
    theirs, pooled, _ = flux.pipe.encode_prompt(["a church", "a dog"], max_sequence_length=16)
    ours = flux.encode(["a church", "a dog"])
    assert torch.equal(ours.tokens, theirs)
    assert ours.pooled is not None
    assert torch.equal(ours.pooled, pooled)
    assert ours.guidance is not None
    assert ours.guidance.tolist() == [3.5, 3.5]
    (t5,) = flux.family.streams("a red church")
    assert (t5.start, t5.first, t5.subject, t5.eos, len(t5.ids)) == (0, 0, 2, 3, 16)


def test_the_pooled_vector_and_the_scale_matter_and_may_be_left_to_the_prompt(flux: Model):
    church, dog = flux.encode(["a church"]), flux.encode(["a dog"])
    by_prompt = flux.generate([Query("a church", 0, 3, 1.0)])
    same = flux.generate([Query("a church", 0, 3, 1.0, context=Context(church.tokens))])
    assert (same - by_prompt).abs().max() <= 1e-5
    for other in (replace(church, pooled=dog.pooled), replace(church, guidance=torch.tensor([1.0]))):
        changed = flux.generate([Query("a church", 0, 3, 1.0, context=other)])
        assert (changed - by_prompt).abs().max() > 1e-4


def test_latents_are_packed_as_in_the_pipeline(flux: Model):
    x = torch.randn(2, 4, 8, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 8, 6))
    assert torch.equal(unpack(pack(x), 4, 3), x)
    _, rest = flux.family.inputs(x, 500)
    assert torch.equal(rest["img_ids"], FluxPipeline._prepare_latent_image_ids(2, 4, 3, "cpu", torch.float32))


def test_the_denoisers_arguments_go_both_ways(flux: Model):
    c, x, t = flux.encode(["a church", "a dog"]), torch.randn(2, 4, 8, 8), torch.tensor([300.0, 700.0])
    latents, rest = flux.family.inputs(x, t)
    given = {"hidden_states": latents, **rest, **flux.family.arguments(c, 2)}
    back = flux.family.context_of(given)
    assert torch.equal(back.tokens, c.tokens)
    assert torch.equal(back.pooled, c.pooled)  # pyright: ignore[reportArgumentType]
    assert torch.equal(back.guidance, c.guidance)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(flux.family.inputs_of(given), (x, t))


def test_it_is_recognised_and_what_does_not_fit_is_refused(flux: Model):
    assert type(flux.family).TITLE == "FLUX.1"
    assert flux.latent_shape == (4, 8, 8)
    assert flux.family.image_size == 16
    pipe = own(flux)
    pipe.text_encoder_2 = None
    with pytest.raises(BadModel, match="by T5, and text_encoder_2 is missing"):
        family_of(pipe).check()
    pipe = own(flux)
    pipe.transformer = FluxTransformer2DModel.from_config({**flux.denoiser.config, "in_channels": 24})
    with pytest.raises(BadModel, match="reads 24 channels and the autoencoder has 4 × 4"):
        family_of(pipe).check()


@pytest.mark.parametrize("method", [UCE(pooled=True), ESD(steps=2, ddim_steps=3, lr=1e-3)])
def test_an_edit_of_weights_attaches_to_the_pipeline(flux: Model, method: Method):
    edit, asked = method(flux, ["church"]), queries(4.0, 2.0)
    with edit.applied(flux) as edited:
        images = edited.generate(asked)
    assert (images[0] - flux.generate(asked)[0]).abs().max() > 1e-3
    pipe = own(flux)
    attach(edit, pipe)
    assert (by_pipeline(pipe, asked) - images).abs().max() <= 1e-5


def test_a_guard_is_not_attached_to_a_pipeline_that_runs_the_sides_of_guidance_one_by_one(flux: Model):
    edit, pipe = NegativePrompt()(flux, ["church"]), own(flux)
    with pytest.raises(BadEdit, match="does not call its denoiser on both sides of guidance at once"):
        attach(edit, pipe)
    assert type(pipe) is FluxPipeline


def test_images_to_train_on_are_made_by_the_distilled_guidance(flux: Model):
    seen = []
    hook = flux.denoiser.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    try:
        TaskVector(steps=1, images=1, image_steps=2, image_batch=1)(flux, ["church"])
    finally:
        hook.remove()
    assert seen[:2] == [1, 1]  # one pass a step


def test_a_single_file_of_the_transformer_is_refused_with_the_reason(tmp_path: Path):
    path = tmp_path / "flux1-dev.safetensors"
    save_safetensors(
        path, {"double_blocks.0.img_attn.qkv.weight": torch.zeros(6, 2), "txt_in.weight": torch.zeros(2, 2)}
    )
    with pytest.raises(BadModel, match=r"cannot be read: it is the transformer of FLUX\.1 alone"):
        Model.load(path)


def test_on_the_command_line_guidance_is_none_where_it_is_not_given(flux: Model, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    made = images.generate(flux, None, ["a church"], (0,), {"steps": 2}, Common())
    near, far = (flux.generate([Query("a church", 0, 2, scale)]) for scale in (1.0, 7.5))
    assert (made - near).abs().max() <= 0.5 / 255 + 1e-4 < (made - far).abs().max()  # stored in 8 bits


def test_on_the_command_line_the_scale_that_is_read_has_a_flag(folder_of, flux: Model, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    where, sheets = str(folder_of("flux")), []
    for embedded in ((), ("--embedded", "3.5"), ("--embedded", "9")):
        sheets.append(tmp_path / f"{len(sheets)}.png")
        assert run(["generate", "church", "--steps", "2", *embedded, "--model", where, "-o", str(sheets[-1])]) == 0
    usual, same, other = (sheet.read_bytes() for sheet in sheets)
    assert usual == same != other
    assert run(["generate", "church", "--embedded", "3.5", "-o", str(tmp_path / "mini.png")]) == 2  # mini reads none


def test_the_command_line_erases_and_generates(folder_of, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    where = str(folder_of("flux"))
    for line in (
        f"erase uce church --model {where} --stream --pooled -o church.safetensors",
        f"generate church --steps 2 --edit church.safetensors --model {where} -o sheet.png",
    ):
        assert run(line.split()) == 0, capsys.readouterr().err
    assert set(Edit.load("church.safetensors").names) == {
        "transformer.context_embedder.weight",
        "transformer.time_text_embed.text_embedder.linear_1.weight",
    }
    assert (tmp_path / "sheet.png").is_file()


def test_a_finding_holds_the_scale_that_is_read(flux: Model, tmp_path: Path):
    church = flux.encode(["a church"])
    asked = (
        Query("a church", 0, 2, 1.0, embedded=2.0),
        Query("a church", 0, 2, 1.0, context=replace(church, guidance=torch.tensor([2.0]))),
        Query("a church", 0, 2, 1.0, context=church),
    )
    assert len({query.key for query in asked}) == 3
    Finding(asked, (0.0, 0.0, 0.0)).save(tmp_path / "found.safetensors")
    back = Finding.load(tmp_path / "found.safetensors").queries
    assert back == asked
    images = flux.generate(back)
    assert (images[0] - images[1]).abs().max() <= 1e-5
    assert (images[0] - images[2]).abs().max() > 1e-4


def test_an_edit_of_another_family_is_refused(flux: Model, tiny: Model):
    with pytest.raises(BadEdit, match="another architecture"):
        UCE()(tiny, ["church"]).check(flux)
    with pytest.raises(BadEdit, match="another architecture"):
        UCE()(flux, ["church"]).check(tiny)


def test_quantised_weights_are_refused(folder_of, tmp_path: Path):
    shutil.copytree(folder_of("flux"), tmp_path / "flux")
    path = tmp_path / "flux" / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": {"bits": 4}}), encoding="utf-8")
    with pytest.raises(BadModel, match="is quantised: its transformer has a quantization_config"):
        Model.load(tmp_path / "flux")
