import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from torch import Tensor

from efface.errors import BadFile, BadInput, BadModel, UnknownName
from efface.models.files import load
from efface.models.model import Model
from efface.util.files import load_safetensors, save_safetensors


def test_a_folder_is_loaded_ready_and_quiet(folder: Path, capsys: pytest.CaptureFixture[str]):
    model = Model.load(folder)
    assert capsys.readouterr() == ("", "")
    assert model.name == str(folder)
    assert not any(weight.requires_grad for weight in model.weights("").values())
    assert not model.denoiser.training
    assert model.dtype == torch.float32
    assert model.device.type == "cpu"


def test_a_half_precision_folder_is_loaded_in_single_precision(folder: Path, tmp_path: Path):
    half = Model.load(folder, dtype=torch.float16)
    half.pipe.save_pretrained(tmp_path / "half")
    model = Model.load(tmp_path / "half")
    assert {weight.dtype for weight in model.weights("").values()} == {torch.float32}
    for name, weight in half.weights("").items():
        assert torch.equal(model.weights("")[name], weight.float()), name


def test_mini_without_weights_says_how_to_make_them(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(load.SHIPPED, "mini", load.SHIPPED["mini"]._replace(weights=tmp_path))
    with pytest.raises(BadModel, match="mini has no weights"):
        Model.load("mini")


def test_mini_is_the_folder_in_the_package(monkeypatch, folder: Path):
    monkeypatch.setitem(load.SHIPPED, "mini", load.SHIPPED["mini"]._replace(weights=folder))
    assert Model.load("mini").name == "mini"


@pytest.mark.parametrize("device", ["cuda:77", "nothing"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str):
    with pytest.raises(BadInput, match=f"device '{device}' cannot be used"):
        Model.load(folder, device=device)


@pytest.mark.parametrize("name", ["minni", "Mini", "nonsense"])
def test_an_unknown_name_gives_the_nearest_match(name: str):
    with pytest.raises(UnknownName, match=f"unknown model '{name}'"):
        Model.load(name)


def test_an_unknown_path_gives_the_nearest_match(folder: Path, single_file: Path):
    with pytest.raises(UnknownName, match=f"did you mean '{folder}'"):
        Model.load(folder.with_name("tinny"))
    with pytest.raises(BadFile, match="does not exist"):
        Model.load(single_file.with_name("none.safetensors"))


def test_a_hub_id_out_of_reach_is_one_clear_line():
    with pytest.raises(BadModel, match="cannot load 'nobody/nothing-at-all'") as caught:
        Model.load("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_advice(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(BadFile, match=r"convert it to \.safetensors"):
        Model.load(path)


def copied(folder: Path, tmp_path: Path) -> Path:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    return own


def test_a_folder_of_pickles_is_refused(folder: Path, tmp_path: Path):
    own = copied(folder, tmp_path)
    for path in own.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(BadModel, match="pickled ones"):
        Model.load(own)


def test_a_folder_with_one_pickle_is_refused(folder: Path, tmp_path: Path):
    own = copied(folder, tmp_path)
    path = next((own / "unet").glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(BadFile, match=r"unet has no \.safetensors file"):
        Model.load(own)


def test_a_truncated_folder_is_refused(folder: Path, tmp_path: Path):
    own = copied(folder, tmp_path)
    path = next((own / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadFile, match="truncated"):
        Model.load(own)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(BadModel, match=r"no model_index\.json"):
        Model.load(tmp_path)
    own = copied(folder, tmp_path)
    (own / "model_index.json").write_text("{")
    with pytest.raises(BadModel, match="not valid JSON"):
        Model.load(own)
    (own / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(BadModel):
        Model.load(own)


def test_another_kind_of_pipeline_is_refused(tmp_path: Path):
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(BadModel, match="DDPMPipeline, which has no vae"):
        Model.load(tmp_path / "ddpm")


def changed(path: Path, change) -> None:
    """Write a .safetensors file anew with its tensors changed."""
    tensors, meta = load_safetensors(path)
    save_safetensors(path, change(tensors), meta)


def first_key(tensors: dict[str, Tensor], end: str) -> str:
    return next(key for key in sorted(tensors) if key.endswith(end))


PARTS = [
    ("folder", "text_encoder", "final_layer_norm.weight"),
    ("folder", "unet", "mid_block.attentions.0.proj_in.weight"),
    ("folder", "vae", "quant_conv.bias"),
    ("folder_xl", "text_encoder", "layers.0.mlp.fc1.bias"),
    ("folder_xl", "text_encoder_2", "text_projection.weight"),
    ("folder_xl", "unet", "add_embedding.linear_1.weight"),
]


@pytest.mark.parametrize(("source", "part", "end"), PARTS)
def test_a_weight_missing_left_over_or_of_another_shape_is_refused_by_name(
    source: str, part: str, end: str, request: pytest.FixtureRequest, tmp_path: Path
):
    folder = request.getfixturevalue(source)

    def one(change) -> Path:
        own = tmp_path / "own"
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(folder, own)
        changed(next((own / part).glob("*.safetensors")), change)
        return own

    with pytest.raises(BadModel, match=rf"is not a complete model: it has no {part}\..*{re.escape(end)}$"):
        Model.load(one(lambda t: {k: v for k, v in t.items() if k != first_key(t, end)}))
    with pytest.raises(BadModel, match=rf"does not fit: its {part} has no weight {part}\.stranger\.weight$"):
        Model.load(one(lambda t: t | {"stranger.weight": torch.ones(2)}))
    with pytest.raises(BadModel, match=rf"is inconsistent: {part}\..*{re.escape(end)} is \[3, 5\], expected"):
        Model.load(one(lambda t: t | {first_key(t, end): torch.ones(3, 5)}))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler beside numpy 2
def test_a_folder_is_what_diffusers_loads(folder: Path, folder2: Path, folder_xl: Path):
    for path in (folder, folder2, folder_xl):
        ours = Model.load(path).pipe
        theirs = DiffusionPipeline.from_pretrained(path, local_files_only=True)
        assert type(ours) is type(theirs)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            mine, other = (getattr(pipe, name, None) for pipe in (ours, theirs))
            if mine is None:
                assert other is None
                continue
            assert type(mine) is type(other)
            assert mine.state_dict().keys() == other.state_dict().keys()
            assert all(torch.equal(value, other.state_dict()[key]) for key, value in mine.state_dict().items())
            assert all(torch.equal(*both) for both in zip(mine.buffers(), other.buffers(), strict=True))
            assert not any(value.is_meta for value in (*mine.parameters(), *mine.buffers()))
        ours.set_progress_bar_config(disable=True)
        theirs.set_progress_bar_config(disable=True)
        images = [
            pipe("a church", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
            for pipe in (ours, theirs)
        ]
        assert (images[0] == images[1]).all()


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a text encoder's tensors as transformers 4 writes them, with the positions that older versions add."""
    found = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}
    return found | {"text_model.embeddings.position_ids": torch.arange(16)[None]}


def test_names_of_older_versions_are_read(folder: Path, tmp_path: Path, tiny: Model):
    own = copied(folder, tmp_path)
    changed(own / "text_encoder" / "model.safetensors", prefixed)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, name in old.items():
            tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
        return tensors

    changed(own / "vae" / "diffusion_pytorch_model.safetensors", renamed)
    found = Model.load(own).weights("")
    assert all(torch.equal(found[name], value) for name, value in tiny.weights("").items())
    theirs = DiffusionPipeline.from_pretrained(own, local_files_only=True)
    for name, value in theirs.vae.state_dict().items():
        assert torch.equal(found[f"vae.{name}"], value)


def test_a_folder_of_half_precision_variants_only_is_read(folder: Path, tmp_path: Path):
    own = copied(folder, tmp_path)
    for path in own.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert Model.load(own).weights("").keys() == Model.load(folder).weights("").keys()


@pytest.mark.slow
def test_a_hub_id_is_the_folder_in_the_cache(folder_xl: Path, tmp_path: Path):
    """In a process of its own, since the hub's cache folder is read from the environment at import."""
    home = tmp_path / "models--some--model"
    shutil.copytree(folder_xl, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    script = "from efface.models.files.load import load_pipe; import sys, torch;"
    script += "pipe, name = load_pipe('some/model', torch.float32); print(name, type(pipe).__name__)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["some/model", "StableDiffusionXLPipeline"]
