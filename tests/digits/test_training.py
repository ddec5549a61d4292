import json

import pytest
import torch

from efface.digits import data, pipeline, training
from efface.digits.net import Classifier
from efface.digits.prompts import spread
from efface.util.files import load_safetensors


@pytest.fixture(scope="module")
def few():
    return data.load("mnist")[torch.arange(0, 10_000, 100)]


def test_weights_come_from_one_seed():
    one, two, other = (training.seeded(Classifier(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.1.weight"], other["head.1.weight"])


def test_a_stopped_training_of_the_judge_goes_on(few, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    training.train_judge(few, tmp_path / "a", steps=4)
    training.train_judge(few, tmp_path / "b", steps=4)
    one, two = (load_safetensors(tmp_path / name / "judge.safetensors")[0] for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    training.train_judge(few, tmp_path / "b", steps=6)
    (state,) = (load_safetensors(tmp_path / "b" / "judge.safetensors")[1]["state"],)
    assert json.loads(state)["step"] == 6


def test_export_holds_the_averaged_weights_in_half_precision(few, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEPS", {"unet": 1, "judge": 1, "judge2": 1})
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "load", lambda dataset, folder: few)
    path = training.train("mnist", tmp_path / "run", tmp_path, None)
    tensors, meta = load_safetensors(path)
    average = load_safetensors(tmp_path / "run" / "unet.safetensors")[0]["a.enter.weight"]
    assert torch.equal(tensors["unet.enter.weight"], average.half())
    assert torch.equal(tensors["codes"], spread(10))
    assert set(json.loads(meta["accuracy"])) == {"judge", "judge2"}


def test_the_schedule_ends_in_noise():
    ends = training.noise_schedule().alphas_cumprod[[0, -1]]
    assert ends[0] > 0.999
    assert ends[1] < 1e-4


def test_the_id_of_the_model_does_not_depend_on_the_process():
    """A scheduler lists its defaults in the order of a set, which changes from process to process."""
    assert training.noise_schedule().config["_use_default_values"] == []


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_the_weights_that_ship_are_small_and_say_how_long_they_were_trained(dataset):
    path = pipeline.WEIGHTS / f"{dataset}.safetensors"
    _, meta = load_safetensors(path)
    assert meta["dataset"] == dataset
    assert json.loads(meta["steps"]) == training.steps_of(dataset)
    assert path.stat().st_size < 2_000_000
