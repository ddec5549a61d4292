"""Full differences and copies hold the edit and nothing else; what a format cannot hold is refused with the reason."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput, UnknownName, WriteError
from efface.export import export_edit, names
from efface.methods.negative import NegativePrompt
from efface.methods.uce import UCE
from efface.models.files import stream
from efface.models.model import Model
from efface.util.files import load_safetensors, save_safetensors

own = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))


def test_the_formats():
    assert names() == ["diff", "diffusers-folder", "diffusers-lora", "kohya-lora", "single-file"]


def everything(pipe: Any) -> Edit:
    """Return an edit of every weight and bias of a denoiser."""
    part = own.part_of(pipe)
    return own.dense({f"{part}.{name}": tuple(w.shape) for name, w in getattr(pipe, part).named_parameters()})


def test_full_differences_are_exact_for_all_weights_and_biases(tiny, tmp_path: Path):
    edit, path = everything(tiny.pipe), tmp_path / "diff.safetensors"
    report = export_edit(edit, "diff", path, tiny.pipe, dtype="fp32")
    assert report.error == 0.0
    assert report.tools == ("ComfyUI", "A1111")
    stored, _ = load_safetensors(path)
    assert len(stored) == len(edit.delta)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.diff"
    assert torch.equal(stored[key], edit.delta["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"])
    bias = stored["lora_unet_conv_in.diff_b"]
    assert torch.equal(bias, edit.delta["unet.conv_in.bias"])


def test_a_lone_bias_gets_zeros_beside_it(tiny, tmp_path: Path):
    edit, path = own.dense({"unet.conv_in.bias": (32,)}), tmp_path / "bias.safetensors"
    export_edit(edit, "diff", path, tiny.pipe)
    stored, _ = load_safetensors(path)
    assert {key: bool(value.any()) for key, value in stored.items()} == {
        "lora_unet_conv_in.diff": False,
        "lora_unet_conv_in.diff_b": True,
    }


def test_full_differences_of_flux_are_for_comfyui(tmp_path: Path):
    pipe = own.flux()
    edit = own.dense(
        {f"transformer.context_embedder.{name}": shape for name, shape in (("weight", (32, 32)), ("bias", (32,)))}
    )
    path = tmp_path / "diff.safetensors"
    assert export_edit(edit, "diff", path, pipe).tools == ("ComfyUI",)
    assert set(load_safetensors(path)[0]) == {
        "transformer.context_embedder.diff",
        "transformer.context_embedder.diff_b",
    }
    fused = own.dense({"transformer.transformer_blocks.0.attn.to_q.bias": (32,)})
    with pytest.raises(BadEdit, match="ComfyUI would pass over"):
        export_edit(fused, "diff", tmp_path / "fused.safetensors", pipe)
    assert [file.name for file in tmp_path.iterdir()] == ["diff.safetensors"]


COPIES = {
    "folder": "diffusers-folder",
    "folder_xl": "diffusers-folder",
    "single_file": "single-file",
    "single_file_xl": "single-file",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", COPIES)
def test_a_copy_is_the_edited_model_in_diffusers(source: str, request, tmp_path: Path):
    path = request.getfixturevalue(source)
    words = None if path.is_dir() else request.getfixturevalue(source.replace("single_file", "folder")) / "tokenizer"
    model = Model.load(path, tokenizer=words)
    edit = UCE()(model, ["church"])
    out = tmp_path / ("copy" if path.is_dir() else "copy.safetensors")
    report = export_edit(edit, COPIES[source], out, path)
    assert "outputs of the denoiser, loaded by diffusers: 0 of" in report.checks[1]
    with edit.applied(model) as edited:
        for name, value in Model.load(out, tokenizer=words).weights().items():
            torch.testing.assert_close(value, edited.weights()[name], rtol=1e-6, atol=1e-7)
    with pytest.raises(BadEdit, match="was made on"):
        export_edit(edit, COPIES[source], tmp_path / f"twice{out.suffix}", out)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_a_flow_is_copied(tiny_each: Model, tmp_path: Path):
    tiny_each.pipe.save_pretrained(tmp_path / "model")
    model = Model.load(tmp_path / "model")
    edit = UCE()(model, ["church"])
    report = export_edit(edit, "diffusers-folder", tmp_path / "copy", tmp_path / "model")
    assert "outputs of the denoiser, loaded by diffusers: 0 of" in report.checks[1]
    with edit.applied(model) as edited:
        for name, value in Model.load(tmp_path / "copy").weights().items():
            torch.testing.assert_close(value, edited.weights()[name], rtol=1e-6, atol=1e-7)


def _spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let copies be written wrongly."""
    write = stream.write

    def wrong(edit: Edit, where: Any, out: Path, any_base: bool = False) -> None:
        write(edit, where, out, any_base)
        tensors, meta = load_safetensors(out)
        save_safetensors(out, change(tensors), meta)

    monkeypatch.setattr(stream, "write", wrong)


TEXT = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
BIAS = "model.diffusion_model.out.2.bias"
SPOILED = {
    "another tensor": (lambda t: t | {BIAS: t[BIAS] + 1}, "out.2.bias differs"),
    "an edited one": (lambda t: t | {TEXT: t[TEXT] * 1.01}, "away from its edited value"),
    "one too few": (lambda t: {k: v for k, v in t.items() if k != BIAS}, "has other tensors"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_copy_that_differs_elsewhere_is_refused(what: str, single_file: Path, tiny, tmp_path: Path, monkeypatch):
    change, says = SPOILED[what]
    edit = own.text_map(own.text_weights(tiny.pipe), 32)
    _spoil(monkeypatch, change)
    with pytest.raises(BadEdit, match=says):
        export_edit(edit, "single-file", tmp_path / "copy.safetensors", single_file)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_in_which_rounding_leaves_nothing_is_refused(tiny, folder: Path, tmp_path: Path):
    edit = 1e-12 * own.text_map(own.text_weights(tiny.pipe), 32)
    with pytest.raises(BadEdit, match="the copy changes nothing"):
        export_edit(edit, "diffusers-folder", tmp_path / "copy", folder)
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_of_weights_can_hold(tiny, tmp_path: Path):
    out = tmp_path / "x.safetensors"
    edit = UCE()(tiny, ["church"])
    key = Edit(meta={"key": {"mechanism": "concat", "where": "mid", "concepts": ["church"], "each": False}})
    for bad, says in (
        (NegativePrompt()(tiny, ["church"]), r"a guard \(negative\), which acts while images are generated"),
        (edit.as_guard(), "export the edit it was made from"),
        (Edit(), "it is empty"),
        (key, "a key, which holds prompts"),
        (edit - edit, "changes no weight"),
    ):
        for to in ("kohya-lora", "diff", "diffusers-lora"):
            with pytest.raises(BadEdit, match=says):
                export_edit(bad, to, out, tiny)
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold(tiny, folder: Path, single_file: Path, tmp_path: Path):
    out = tmp_path / "x.safetensors"
    text = own.dense({"text_encoder.encoder.layers.0.mlp.fc1.weight": (64, 32)})
    map32 = own.text_map(own.text_weights(tiny.pipe), 32)
    flux = own.flux()
    flux_map = own.text_map(own.text_weights(flux), 32)
    tq = own.dense({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight": (64, 64)})
    cases: list[tuple[Any, ...]] = [
        (flux_map, "kohya-lora", flux, {}, BadEdit, "cannot express an edit of FLUX.1.*diffusers-lora"),
        (own.text_map(own.text_weights(own.sd3()), 32), "kohya-lora", own.sd3(), {}, BadEdit, "edit of SD3"),
        (flux_map, "diffusers-lora", tiny, {}, BadEdit, "weights of the unet only"),
        (map32, "diffusers-lora", flux, {}, BadEdit, "weights of the transformer only"),
        (text, "kohya-lora", tiny, {"rank": 1}, BadEdit, "also changes text_encoder"),
        (text, "diff", tiny, {}, BadEdit, "also changes text_encoder"),
        (own.dense({"unet.conv_in.bias": (32,)}), "kohya-lora", tiny, {"rank": 1}, BadEdit, "export to diff"),
        (own.dense({"unet.conv_norm_out.weight": (32,)}), "kohya-lora", tiny, {"rank": 1}, BadEdit, "matrices and"),
        (tq, "kohya-lora", tiny, {}, BadInput, r"--rank 64.*--error 0.01"),
        (tq, "kohya-lora", tiny, {"rank": 1, "error": 0.1}, BadInput, "not both"),
        (tq, "kohya-lora", tiny, {"rank": 0}, BadInput, "rank"),
        (tq, "kohya-lora", tiny, {"error": 1.0}, BadInput, "error"),
        (tq, "diff", tiny, {"rank": 1}, UnknownName, "field of diff 'rank'"),
        (1e9 * tq, "diff", tiny, {}, BadEdit, "overflow in torch.float16: use fp32"),
        (tq, "kohya", tiny, {}, UnknownName, "did you mean 'kohya_lora'"),
        (map32, "single-file", tiny, {}, BadInput, "name the folder or file"),
        (map32, "single-file", folder, {}, BadInput, "does not convert"),
        (map32, "diffusers-folder", single_file, {}, BadInput, "does not convert"),
        (map32, "diff", tiny, {"compare": "outputs"}, BadInput, "diffusers does not load this format"),
        (own.text_map(["unet.nosuch.weight"], 32), "kohya-lora", tiny, {}, BadEdit, "has no weight unet.nosuch"),
        (own.text_map(own.text_weights(tiny.pipe), 31), "kohya-lora", tiny, {}, BadEdit, "another architecture"),
    ]  # fmt: skip
    for edit, to, model, fields, error, says in cases:
        with pytest.raises(error, match=f"(?s){says}"):
            export_edit(edit, to, out, model, **fields)
    with pytest.raises(WriteError, match="exists already"):
        export_edit(map32, "diffusers-folder", tmp_path, folder)
    with pytest.raises(WriteError, match="it is a folder"):
        export_edit(map32, "kohya-lora", tmp_path, tiny)
    assert list(tmp_path.iterdir()) == []


def test_the_digits_model_has_no_lora(tmp_path: Path):
    model = Model.load("digits:mnist")
    name, weight = next((name, w) for name, w in model.weights().items() if w.dim() == 2)
    edit = own.dense({name: tuple(weight.shape)})
    with pytest.raises(BadEdit, match="no tool reads a LoRA of a DigitUNet"):
        export_edit(edit, "kohya-lora", tmp_path / "x.safetensors", "digits:mnist", rank=2)


def test_an_edit_of_another_base_is_refused_unless_asked_for(tiny, tmp_path: Path):
    from efface.models.model import Model as View

    edit = UCE()(tiny, ["church"])
    other = View(own.twin(tiny.pipe))
    with torch.no_grad():
        for name in own.text_weights(tiny.pipe):
            other.pipe.unet.get_parameter(name.partition(".")[2]).data += 0.1
    with pytest.raises(BadEdit, match="any_base applies it all the same"):
        export_edit(edit, "kohya-lora", tmp_path / "x.safetensors", other, compare="weights")
    assert (
        export_edit(edit, "kohya-lora", tmp_path / "x.safetensors", other, any_base=True, compare="weights").error
        < 1e-3
    )
