"""The methods of Stable Diffusion edit the digits model as they are."""

from dataclasses import replace

import pytest
import torch

from efface.concept import Concept
from experiments.digits.experiment import FINETUNE, METHODS, TASK_VECTOR, Experiment

TABLE = "text_encoder.table.weight"
QUICK = {"steps": 3, "batch": 4, "images": 6, "image_steps": 2}


@pytest.mark.parametrize("method", [METHODS["fixed prompts"], TASK_VECTOR], ids=["fixed prompts", "task vector"])
def test_the_methods_edit_it(raw, method):
    quick = replace(method, **QUICK)
    erase = [Concept("0", prompts=("0",), anchor=a) for a in ("1", "2")]
    if method is TASK_VECTOR:
        erase = [Concept("0", prompts=("0",))]
    edit = quick(raw, erase)
    middle = {name for name in raw.weights() if ".mid" in name and ".conv1." in name}
    assert set(edit.delta) == (middle if method is TASK_VECTOR else set(raw.weights()))
    with edit.applied(raw) as edited, torch.no_grad():
        x, c = torch.randn(2, 1, 28, 28), raw.encode(["0"])
        assert (edited.eps(x, 500, c) - raw.eps(x, 500, c)).abs().max() > 1e-5
    with (0.0 * edit).applied(raw) as same, torch.no_grad():
        assert torch.equal(same.eps(x, 500, c), raw.eps(x, 500, c))


def test_fine_tuning_shows_the_anchors_under_the_target_and_under_their_own_names():
    erase = [Concept("0", anchor=a) for a in ("1", "2")]
    assert [pair for concept in erase for pair in FINETUNE.prompts(concept, ())] == [("1", "0"), ("2", "0")]


def test_fine_tuning_trains_the_table_with_a_rate_of_its_own(raw):
    """Only rows of prompts in the training move, by about the table's rate a step; weight decay does not reach it."""
    erase = [Concept("0", anchor=a) for a in ("1", "2")]
    method = replace(FINETUNE, **QUICK, weight_decay=0.5, optimizer="adamw")
    edit = method(raw, erase)
    assert set(edit.delta) == {*raw.weights(), TABLE}
    moved = edit.delta[TABLE]
    assert not moved[3:].any()
    assert (moved[:3].abs().amax(1) > 0.01).all()
    assert moved.abs().max() < 0.04  # 3 steps of Adam at .01
    assert max(float(d.abs().max()) for name, d in edit.delta.items() if name != TABLE) < 0.01
    with edit.applied(raw) as edited:
        assert (edited.encode(["0"]).tokens - raw.encode(["0"]).tokens).abs().max() > 1e-3
    fixed = replace(method, embedding_lr=0.0)(raw, erase)
    assert set(fixed.delta) == set(raw.weights())


def test_the_two_readings_differ_in_the_rates_only():
    fixed = METHODS["fixed prompts"]
    assert replace(FINETUNE, lr=fixed.lr, embedding_lr=0.0) == fixed
    assert FINETUNE.embedding_lr > fixed.lr > FINETUNE.lr


def test_edits_of_several_training_seeds_stand_side_by_side(tmp_path):
    one, two = (Experiment(folder=tmp_path, seed=seed) for seed in (0, 1))
    assert one.edit_path("fine-tuned").name == "mnist-0-fine-tuned.safetensors"
    assert two.edit_path("fine-tuned").name == "mnist-0-seed1-fine-tuned.safetensors"
