import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadFile, BadModel
from efface.models.files import tokenizer
from efface.models.model import Model
from efface.query import Query
from efface.util.files import load_safetensors, save_safetensors

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
    assert loaded.prediction == model.prediction
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


def test_what_it_predicts_is_said_by_header_argument_or_version(single_file2: Path, folder2: Path, tmp_path: Path):
    words = folder2 / "tokenizer"
    size = {"modelspec.resolution": "16x16"}
    said = rewritten(single_file2, tmp_path / "a.safetensors", {**size, "modelspec.prediction_type": "epsilon"})
    assert Model.load(single_file2, tokenizer=words).prediction == "v_prediction"
    assert Model.load(said, tokenizer=words).prediction == "epsilon"
    assert Model.load(said, tokenizer=words, prediction="v_prediction").prediction == "v_prediction"
    assert Model.load(single_file2, tokenizer=words, prediction="epsilon").prediction == "epsilon"


def test_the_size_without_a_header_is_stable_diffusions(single_file: Path, folder: Path, tmp_path: Path):
    path = rewritten(single_file, tmp_path / "a.safetensors", {})
    model = Model.load(path, tokenizer=folder / "tokenizer")
    assert model.latent_shape == (4, 64, 64)
    assert model.prediction == "epsilon"


def test_a_folder_named_tokenizer_beside_the_file_is_found(
    single_file: Path, folder: Path, tmp_path: Path, tiny: Model
):
    shutil.copy(single_file, tmp_path / "model.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    model = Model.load(tmp_path / "model.safetensors")
    assert torch.equal(model.encode(["a church"]), tiny.encode(["a church"]))


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


def test_other_kinds_of_files_are_refused(single_file: Path, tmp_path: Path, tiny: Model):
    with pytest.raises(BadModel, match="SDXL"):
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
