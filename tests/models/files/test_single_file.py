import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadFile, BadModel
from efface.models.files import tokenizer
from efface.models.files.original_layout import UNET
from efface.models.model import Model
from efface.query import Query
from efface.util.files import load_safetensors, save_safetensors

CLIP = "cond_stage_model.transformer.text_model."
QUERIES = [Query("a church", 0, 3), Query("a dog", 1, 3)]


@pytest.mark.parametrize("version", ["", "2"])
def test_it_is_the_model_it_was_made_from(version: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(f"tiny{version}")
    loaded = Model.load(
        request.getfixturevalue(f"single_file{version}"),
        tokenizer=request.getfixturevalue(f"folder{version}") / "tokenizer",
    )
    ours, theirs = loaded.weights(""), model.weights("")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.family.schedule.output == model.family.schedule.output
    assert loaded.latent_shape == model.latent_shape
    assert torch.equal(loaded.generate(QUERIES), model.generate(QUERIES))
    assert not any(weight.requires_grad for weight in ours.values())


def test_an_edit_of_the_folder_fits_the_file(tiny: Model, single_file: Path, folder: Path):
    names = tiny.text_weights()
    edit = Edit(delta={names[0]: torch.ones(32, 32)}, meta={"base": tiny.base(names[:1])})
    edit.check(Model.load(single_file, tokenizer=folder / "tokenizer"))


def test_half_precision(single_file: Path, folder: Path):
    model = Model.load(single_file, dtype=torch.bfloat16, tokenizer=folder / "tokenizer")
    assert {weight.dtype for weight in model.weights("").values()} == {torch.bfloat16}


def rewritten(path: Path, target: Path, meta: dict[str, str] | None = None, **changes: Tensor | None) -> Path:
    """Copy a checkpoint with other metadata and some tensors changed, or taken away by a part of their name."""
    tensors, old = load_safetensors(path)
    for name, tensor in changes.items():
        if tensor is None:
            tensors = {key: value for key, value in tensors.items() if name not in key}
        else:
            tensors[name] = tensor
    save_safetensors(target, tensors, old if meta is None else meta)
    return target


def test_the_prediction_type_comes_from_header_argument_or_version(single_file2: Path, folder2: Path, tmp_path: Path):
    words = folder2 / "tokenizer"
    size = {"modelspec.resolution": "16x16"}
    said = rewritten(single_file2, tmp_path / "a.safetensors", {**size, "modelspec.prediction_type": "epsilon"})
    assert Model.load(single_file2, tokenizer=words).family.schedule.output == "v_prediction"
    assert Model.load(said, tokenizer=words).family.schedule.output == "epsilon"
    assert Model.load(said, tokenizer=words, prediction="v_prediction").family.schedule.output == "v_prediction"
    assert Model.load(single_file2, tokenizer=words, prediction="epsilon").family.schedule.output == "epsilon"


def test_the_size_without_a_header_is_stable_diffusions(single_file: Path, folder: Path, tmp_path: Path):
    path = rewritten(single_file, tmp_path / "a.safetensors", {})
    model = Model.load(path, tokenizer=folder / "tokenizer")
    assert model.latent_shape == (4, 64, 64)
    assert model.family.schedule.output == "epsilon"


def test_a_folder_named_tokenizer_beside_the_file_is_found(
    single_file: Path, folder: Path, tmp_path: Path, tiny: Model
):
    shutil.copy(single_file, tmp_path / "model.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    model = Model.load(tmp_path / "model.safetensors")
    assert torch.equal(model.encode(["a church"]).tokens, tiny.encode(["a church"]).tokens)


def test_without_a_vocabulary_the_error_says_what_to_pass(single_file: Path, monkeypatch):
    monkeypatch.setattr(tokenizer, "_cached", lambda: None)
    monkeypatch.setattr(tokenizer, "_packaged", lambda: None)
    with pytest.raises(BadModel, match="pass tokenizer=<folder") as caught:
        Model.load(single_file)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_of_another_size_is_refused(single_file: Path, tmp_path: Path, monkeypatch):
    from transformers import CLIPTokenizer

    CLIPTokenizer(vocab={"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[]).save_pretrained(
        tmp_path / "words"
    )
    with pytest.raises(BadModel, match="the tokenizer has 3 tokens"):
        Model.load(single_file, tokenizer=tmp_path / "words")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("input_blocks.0.0", "not a Stable Diffusion checkpoint"),
        ("cond_stage_model", "no text encoder"),
        ("first_stage_model", "not a complete"),
        ("middle_block.1", "not a complete"),
        ("attn2.to_v", "not a complete"),
        ("position_embedding", "not a complete"),
        ("quant_conv", "not a complete"),
    ],
)
def test_an_incomplete_file_is_refused(single_file: Path, folder: Path, tmp_path: Path, gone: str, message: str):
    path = rewritten(single_file, tmp_path / "a.safetensors", **{gone: None})
    with pytest.raises((BadModel, BadFile), match=message) as caught:
        Model.load(path, tokenizer=folder / "tokenizer")
    assert "\n" not in str(caught.value)


CLIP_G = "conditioner.embedders.1.model."
IN_ORIGINAL = [
    ("", f"{UNET}time_embed.0.weight", "unet.time_embedding.linear_1.weight"),
    ("", f"{CLIP}encoder.layers.0.mlp.fc1.bias", "text_encoder.encoder.layers.0.mlp.fc1.bias"),
    ("_xl", f"{UNET}label_emb.0.2.bias", "unet.add_embedding.linear_2.bias"),
    ("_xl", f"{UNET}middle_block.0.in_layers.0.weight", "unet.mid_block.resnets.0.norm1.weight"),
    ("_xl", f"{CLIP_G}ln_final.bias", "text_encoder_2.text_model.final_layer_norm.bias"),
    ("_xl", "first_stage_model.quant_conv.bias", "vae.quant_conv.bias"),
]


@pytest.mark.parametrize(("version", "key", "name"), IN_ORIGINAL)
def test_a_weight_missing_left_over_or_of_another_shape_is_refused_by_name(
    version: str, key: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
):
    path = request.getfixturevalue(f"single_file{version}")
    words = request.getfixturevalue(f"folder{version}") / "tokenizer"

    def load(**changes: Tensor | None) -> None:
        Model.load(rewritten(path, tmp_path / "a.safetensors", **changes), tokenizer=words)

    with pytest.raises(BadModel, match=f"is not a complete model: it has no {re.escape(name)}$"):
        load(**{key: None})
    with pytest.raises(BadModel, match=f"is inconsistent: {re.escape(name)} is .3, 5., expected"):
        load(**{key: torch.ones(3, 5)})
    stranger = f"{key.rpartition('.')[0]}.stranger"
    with pytest.raises(BadModel, match=f"does not fit: its .* has no weight {re.escape(stranger)}$"):
        load(**{stranger: torch.ones(2)})


def test_other_tensors_of_a_checkpoint_are_ignored(single_file: Path, folder: Path, tmp_path: Path):
    beside = ("alphas_cumprod", "model_ema.decay", "cond_stage_model.logit_scale", "first_stage_model.loss.logvar")
    path = rewritten(single_file, tmp_path / "a.safetensors", **dict.fromkeys(beside, torch.ones(1)))
    Model.load(path, tokenizer=folder / "tokenizer")


@pytest.mark.parametrize("version", ["", "2", "_xl"])
def test_diffusers_reads_the_same_weights_out_of_the_file(version: str, request: pytest.FixtureRequest):
    """An independent reader: diffusers' own conversion, with the configurations of the folder."""
    path, folder = (request.getfixturevalue(f"{kind}{version}") for kind in ("single_file", "folder"))
    ours = Model.load(path, tokenizer=folder / "tokenizer").pipe
    theirs = type(ours).from_single_file(str(path), config=str(folder), local_files_only=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(ours, name, None) is not None:
            mine, other = (getattr(pipe, name).state_dict() for pipe in (ours, theirs))
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[key], other[key]) for key in mine), name


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler beside numpy 2
def test_sdxl_is_the_pipeline_it_was_made_from(single_file_xl: Path, folder_xl: Path):
    file, folder = Model.load(single_file_xl, tokenizer=folder_xl / "tokenizer"), Model.load(folder_xl)
    ours, theirs = file.weights(""), folder.weights("")
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("text_encoder_2.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for part in ("unet", "vae", "scheduler"):
        mine, other = (dict(model.part(part).config) for model in (file, folder))
        beside = {"_name_or_path", "_class_name", "_diffusers_version", "_use_default_values"}
        different = {key for key in other.keys() - beside if mine.get(key) != other[key]}
        assert not different, {key: (mine.get(key), other[key]) for key in different}
    images = [
        model.pipe(
            ["a church", "a dog"],
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(i) for i in range(2)],
            output_type="np",
        ).images
        for model in (file, folder)
    ]
    assert (images[0] == images[1]).all()
    other = folder.pipe("a red house", num_inference_steps=3, output_type="np").images
    assert abs(other - images[0]).max() > 1e-3  # what is compared depends on the prompt


def test_what_sdxl_predicts_is_marked_among_the_tensors(single_file_xl: Path, folder_xl: Path, tmp_path: Path):
    marks = {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}
    model = Model.load(
        rewritten(single_file_xl, tmp_path / "a.safetensors", **marks), tokenizer=folder_xl / "tokenizer"
    )
    assert model.part("scheduler").config.prediction_type == "v_prediction"
    assert model.part("scheduler").config.rescale_betas_zero_snr


def test_other_kinds_of_files_are_refused(single_file: Path, tmp_path: Path, tiny: Model):
    with pytest.raises(BadModel, match="not SDXL base: the first of two text encoders is missing"):
        Model.load(rewritten(single_file, tmp_path / "xl.safetensors", **{"conditioner.embedders.0.x": torch.ones(1)}))
    nine = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}
    with pytest.raises(BadModel, match="reads 9 channels and writes 4"):
        Model.load(rewritten(single_file, tmp_path / "inpaint.safetensors", **nine))
    Edit().save(tmp_path / "edit.safetensors")
    with pytest.raises(BadModel, match="is an efface edit, not a model"):
        Model.load(tmp_path / "edit.safetensors")
    save_safetensors(tmp_path / "lora.safetensors", {"lora.up": torch.ones(2)})
    with pytest.raises(BadFile, match="not a Stable Diffusion checkpoint"):
        Model.load(tmp_path / "lora.safetensors")


def test_a_truncated_file_is_refused(single_file: Path, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(single_file.read_bytes()[:-1000])
    with pytest.raises(BadFile, match="truncated"):
        Model.load(path)
