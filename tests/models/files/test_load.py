import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from efface.errors import BadFile, BadInput, BadModel, UnknownName
from efface.models.files import load
from efface.models.model import Model


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
    monkeypatch.setattr(load, "MINI", tmp_path)
    with pytest.raises(BadModel, match="mini has no weights"):
        Model.load("mini")


def test_mini_is_the_folder_in_the_package(monkeypatch, folder: Path):
    monkeypatch.setattr(load, "MINI", folder)
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
    with pytest.raises(BadModel) as caught:
        Model.load(own)
    assert "\n" not in str(caught.value)


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
