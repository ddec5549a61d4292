"""A streamed edit is the loaded model's edit, and an edited copy differs in the edited tensors only."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadFile, BadInput, BadModel, WriteError
from efface.methods.closed_form.stream import erase
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.rece import RECE
from efface.methods.time import TIME
from efface.methods.uce import UCE
from efface.methods.uce_debias import Debias
from efface.models.files import stream
from efface.models.files.single_file import SingleFile
from efface.models.files.tensors import weight_files
from efface.models.model import Model
from efface.query import Query

CHURCH = Concept("church", anchor="house")
KEYS = ".attn2.to_k.weight"


@pytest.fixture(params=["folder", "folder2", "folder_xl", "single_file", "single_file2", "single_file_xl"])
def checkpoint(request):
    """Return (checkpoint, its tokenizer for a single file, the loaded model)."""
    path = request.getfixturevalue(request.param)
    home = request.getfixturevalue(request.param.replace("single_file", "folder"))
    words = None if path.is_dir() else home / "tokenizer"
    return path, words, Model.load(path, tokenizer=words)


@pytest.mark.parametrize("method", [UCE(), TIME(), RECE(epochs=2)])
def test_streamed_edit_is_the_loaded_one(checkpoint, method):
    path, words, model = checkpoint
    streamed = erase(method, path, [CHURCH], ["guitar"], tokenizer=words)
    loaded = method(model, [CHURCH], ["guitar"])
    assert streamed == loaded
    assert streamed.meta["base"] | {"id": ""} == loaded.meta["base"] | {"id": ""}
    assert streamed.meta["base"]["id"] == ""
    streamed.check(model)


def test_only_text_and_keys_and_values_are_read(checkpoint):
    path, words, _ = checkpoint
    model = stream.open_model(path, words)
    read = {name for name, weight in model.weights().items() if not weight.is_meta}
    assert read == set(model.text_weights())
    assert model.part("vae") is None
    assert not any(weight.is_meta for weight in model.weights("text_encoder.").values())


def test_edited_copy(checkpoint, tmp_path):
    path, words, model = checkpoint
    edit = UCE()(model, [CHURCH]) + 0.5 * UCE(technique="tensor")(model, ["dog"])
    out = tmp_path / ("copy" if path.is_dir() else "copy.safetensors")
    stream.write(edit, path, out)
    copy = Model.load(out, tokenizer=words)
    with edit.applied(model) as edited:
        wanted, found = edited.weights(""), copy.weights("")
        assert wanted.keys() == found.keys()
        for name in wanted:
            if name in edit.names:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-6)
                assert not torch.equal(found[name], model.weights()[name])
            else:
                assert torch.equal(found[name], wanted[name])
        query = [Query("a church", steps=3)]
        torch.testing.assert_close(copy.generate(query), edited.generate(query), rtol=1e-3, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]  # nothing temporary is left


ANYWHERE = {  # weights that lie in the file in a way of their own: a third of a tensor, transposed, a convolution
    "2": (
        "text_encoder.encoder.layers.1.self_attn.k_proj.weight",
        "text_encoder.encoder.layers.1.self_attn.v_proj.bias",
    ),
    "_xl": (
        "text_encoder_2.text_projection.weight",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "unet.conv_in.weight",
        "unet.add_embedding.linear_1.weight",
        "unet.up_blocks.1.upsamplers.0.conv.bias",
        "vae.decoder.mid_block.attentions.0.to_q.weight",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "single_file"])
@pytest.mark.parametrize("version", ANYWHERE)
def test_any_weight_can_be_written(version, kind, tmp_path, request):
    path = request.getfixturevalue(f"{kind}{version}")
    words = None if path.is_dir() else request.getfixturevalue(f"folder{version}") / "tokenizer"
    model = Model.load(path, tokenizer=words)
    weights = model.weights("")
    edit = Edit(delta={name: torch.rand_like(weights[name]) for name in ANYWHERE[version]})
    out = tmp_path / ("copy" if path.is_dir() else "copy.safetensors")
    stream.write(edit, path, out)
    found = Model.load(out, tokenizer=words).weights("")
    with edit.applied(model) as edited:
        wanted = edited.weights("")
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
        assert torch.equal(found[name], weights[name]) != (name in edit.names), name


def test_copy_of_a_folder_holds_every_file(folder, tmp_path):
    edit = erase(UCE(), folder, [CHURCH])
    stream.write(edit, folder, tmp_path / "copy")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*") if p.is_file())
    for file in files:
        if file.parent.name != "unet" or file.suffix == ".json":
            assert (folder / file).read_bytes() == (tmp_path / "copy" / file).read_bytes()


def test_header_names_the_edit(single_file, folder, tmp_path):
    from efface.util.files import safetensors_meta

    edit = erase(UCE(), single_file, [CHURCH], tokenizer=folder / "tokenizer")
    stream.write(edit, single_file, tmp_path / "copy.safetensors")
    meta = safetensors_meta(tmp_path / "copy.safetensors")
    assert json.loads(meta["efface_edit"])["id"] == edit.id
    assert meta["modelspec.resolution"] == "16x16"
    before, after = load_file(single_file), load_file(tmp_path / "copy.safetensors")
    assert sum(not torch.equal(before[key], after[key]) for key in before) == len(edit.names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(single_file, folder, tmp_path, dtype):
    half = tmp_path / "half.safetensors"
    save_file(
        {key: value.to(dtype) for key, value in load_file(single_file).items()}, half, {"modelspec.resolution": "16x16"}
    )
    edit = erase(UCE(), half, [CHURCH], tokenizer=folder / "tokenizer")
    stream.write(edit, half, tmp_path / "copy.safetensors")
    before, after = load_file(half), load_file(tmp_path / "copy.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    at = {name: place.key for name, place in SingleFile.open(half).places(edit.names).items()}
    assert changed == set(at.values())
    assert all(value.dtype == dtype for value in after.values())
    old = before[at[edit.names[0]]].float()
    assert torch.equal(after[at[edit.names[0]]], (old + edit.maps[0].delta(old)).to(dtype))


def test_sharded_folder(folder, tmp_path):
    import shutil

    model = tmp_path / "sharded"
    shutil.copytree(folder, model)
    whole = weight_files(model / "unet")[0]
    tensors = sorted(load_file(whole).items())
    parts = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": dict(tensors[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, model / "unet" / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    edit = erase(UCE(), model, [CHURCH])
    assert edit == erase(UCE(), folder, [CHURCH])
    stream.write(edit, model, tmp_path / "copy")
    with edit.applied(Model.load(folder)) as edited:
        found = Model.load(tmp_path / "copy").weights()
        assert all(torch.allclose(found[n], w, rtol=1e-6, atol=1e-6) for n, w in edited.weights().items())


@pytest.mark.parametrize("method", [ESD(), NegativePrompt(), RECE(stop_below=0.5), Debias()])
def test_methods_that_need_the_whole_model(folder, method):
    with pytest.raises(BadInput, match="needs the whole model"):
        erase(method, folder, [CHURCH])


def test_bad_checkpoints(single_file, folder, tmp_path):
    words = folder / "tokenizer"
    tensors = load_file(single_file)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(BadFile, match="pickle"):
        erase(UCE(), pickle, [CHURCH], tokenizer=words)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(single_file.read_bytes()[:-100])
    with pytest.raises(BadFile, match="truncated"):
        erase(UCE(), cut, [CHURCH], tokenizer=words)
    with pytest.raises(BadFile, match="does not exist"):
        erase(UCE(), tmp_path / "no.safetensors", [CHURCH])
    with pytest.raises(BadModel, match="model_index"):
        erase(UCE(), tmp_path, [CHURCH])
    blind = tmp_path / "blind.safetensors"
    save_file({k: v for k, v in tensors.items() if "input_blocks.1.1.transformer_blocks.0.attn2" not in k}, blind)
    with pytest.raises(BadModel, match=r"no .*attn2\.to_k"):
        erase(UCE(), blind, [CHURCH], tokenizer=words)
    deaf = tmp_path / "deaf.safetensors"
    save_file({k: v for k, v in tensors.items() if "final_layer_norm" not in k}, deaf)
    with pytest.raises(BadModel, match="final_layer_norm"):
        erase(UCE(), deaf, [CHURCH], tokenizer=words)
    wide = tmp_path / "wide.safetensors"
    key = f"model.diffusion_model.middle_block.1.transformer_blocks.0{KEYS}"
    save_file(tensors | {key: torch.zeros(64, 48)}, wide)
    with pytest.raises(BadModel, match="is inconsistent"):
        erase(UCE(), wide, [CHURCH], tokenizer=words)


def test_bad_writes(single_file, folder, folder2, tmp_path, monkeypatch):
    edit = erase(UCE(), folder, [CHURCH])
    out = tmp_path / "copy.safetensors"
    with pytest.raises(BadInput, match="somewhere else"):
        stream.write(edit, single_file, single_file)
    with pytest.raises(BadInput, match="somewhere else"):
        stream.write(edit, folder, folder / "copy")
    with pytest.raises(BadEdit, match="guard"):
        stream.write(edit.as_guard(), single_file, out)
    with pytest.raises(BadEdit, match="made on"):
        stream.write(edit, folder2, tmp_path / "copy")
    with pytest.raises(BadEdit, match=r"no weight unet\.nowhere"):
        stream.write(Edit(delta={"unet.nowhere": torch.zeros(2)}), single_file, out)
    wrong = Edit(delta={edit.names[0]: torch.zeros(2, 2)})
    with pytest.raises(BadEdit, match="another architecture"):
        stream.write(wrong, single_file, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(WriteError, match="exists already"):
        stream.write(edit, folder, tmp_path / "full")
    with pytest.raises(WriteError):
        stream.write(edit, single_file, tmp_path / "none" / "copy.safetensors")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    for source, target in ((single_file, out), (folder, tmp_path / "copy")):
        with pytest.raises(WriteError, match="No space left"):
            stream.write(edit, source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
