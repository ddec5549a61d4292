import json

import pytest
import torch

from efface.digits import pipeline
from efface.training.checkpoints import read, trained
from efface.util.files import load_safetensors, safetensors_meta
from experiments.digits import data, training


@pytest.fixture(scope="module")
def few():
    return data.load("mnist")[torch.arange(0, 10_000, 100)]


def test_a_stopped_training_of_the_judge_goes_on(few, tmp_path):
    training.train_judge(few, tmp_path / "a", steps=4)
    training.train_judge(few, tmp_path / "b", steps=4)
    one, two = (read(tmp_path / name / "judge.safetensors")[0] for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    training.train_judge(few, tmp_path / "b", steps=6)
    assert read(tmp_path / "b" / "judge.safetensors")[2]["step"] == 6


def test_export_holds_the_averaged_weights_in_half_precision(few, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEPS", {"model": 1, "judge": 1, "judge2": 1})
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "load", lambda dataset, folder: few)
    path = training.train("mnist", tmp_path / "run", tmp_path, None)
    tensors, meta = load_safetensors(path)
    average = trained(tmp_path / "run" / "model.safetensors", "average.")
    assert torch.equal(tensors["unet.enter.weight"], average["unet.enter.weight"].half())
    assert torch.equal(tensors["text_encoder.table.weight"], average["text_encoder.table.weight"])
    assert set(json.loads(meta["accuracy"])) == {"judge", "judge2"}
    again = training.train("mnist", tmp_path / "run1", tmp_path / "other", None, seed=1, judges=path)
    other, about = load_safetensors(again)
    assert other.keys() == tensors.keys()
    assert all(torch.equal(other[name], tensors[name]) for name in tensors if name.startswith("judge"))
    assert not torch.equal(other["unet.enter.weight"], tensors["unet.enter.weight"])
    assert (about["seed"], about["accuracy"]) == ("1", meta["accuracy"])


def test_the_table_is_trained_with_the_denoiser(few, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 4)
    training.train_model(few, 10, tmp_path, steps=2)
    before = training.networks(10).state_dict()["text_encoder.table.weight"]
    after = trained(tmp_path / "model.safetensors", "weight.")["text_encoder.table.weight"]
    assert (after - before).abs().max() > 1e-6


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_the_weights_that_ship_tell_how_long_they_were_trained(dataset):
    meta = safetensors_meta(pipeline.WEIGHTS / f"{dataset}.safetensors")
    assert json.loads(meta["steps"]) == training.steps_of(dataset)
