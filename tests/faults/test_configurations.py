"""Model folders whose configurations cannot be used are refused by name, before anything is generated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler

import efface
from efface.errors import BadInput, BadModel
from efface.models.model import Model


def changed(folder: Path, place: Path, part: str, **values: Any) -> Path:
    """Copy a model folder with other values in the configuration of a part."""
    shutil.copytree(folder, place)
    path = place / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return place


class Config(dict[str, Any]):
    """A configuration as diffusers has it: values by key and by attribute."""

    __getattr__ = dict.__getitem__


def given(model: Model, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Give the UNet of a model another configuration."""
    known = dict(model.denoiser.config)
    monkeypatch.setattr(type(model.denoiser), "config", Config(known | values))


@pytest.mark.parametrize("size", [-1, 0, "64", None, 1.5, True, [8], [8, -8], ["a", "b"], 10**9])
def test_a_sample_size_that_is_none_is_refused(size: Any, tiny: Model, monkeypatch: pytest.MonkeyPatch):
    given(tiny, monkeypatch, sample_size=size)
    with pytest.raises(BadModel, match=r"the sample_size in the UNet's configuration is .*: it must be a whole number"):
        tiny.family.check()


@pytest.mark.parametrize("size", [8, [8, 16], (1, 1)])
def test_a_side_or_two_are_taken(size: Any, tiny: Model, monkeypatch: pytest.MonkeyPatch):
    given(tiny, monkeypatch, sample_size=size)
    tiny.family.check()


def test_a_model_with_nine_channels_is_refused(tiny: Model, monkeypatch: pytest.MonkeyPatch):
    given(tiny, monkeypatch, in_channels=9)
    with pytest.raises(
        BadModel, match="reads 9 channels and the autoencoder has 4: efface needs a text-to-image model"
    ):
        tiny.family.check()


@pytest.mark.parametrize("size", [-1, "64", None])
def test_a_folder_with_a_bad_sample_size_is_refused(size: Any, folder: Path, tmp_path: Path):
    with pytest.raises(BadModel):
        efface.load(changed(folder, tmp_path / "model", "unet", sample_size=size))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pndm_needs_four_steps(steps: int, tiny: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny.pipe, "scheduler", DDIMScheduler(beta_schedule="scaled_linear"))
    with pytest.raises(BadInput, match=f"the solver pndm cannot take {steps} steps: give more"):
        tiny.generate([efface.Query("a church", steps=steps, solver="pndm")])
    assert tiny.generate([efface.Query("a church", steps=4, solver="pndm")]).isfinite().all()
