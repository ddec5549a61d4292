"""The methods of Stable Diffusion edit the digits model as they are."""

from dataclasses import replace

import pytest
import torch

from efface.concept import Concept
from experiments.digits.experiment import FINETUNE, TASK_VECTOR


@pytest.mark.parametrize("method", [FINETUNE, TASK_VECTOR], ids=["fine-tuned", "task vector"])
def test_the_methods_edit_it(raw, method):
    quick = replace(method, steps=3, batch=4, images=6, image_steps=2, bf16=False)
    erase = [Concept("0", prompts=("0",), anchor=a) for a in ("1", "2")] if method is FINETUNE else ["0"]
    if method is TASK_VECTOR:
        erase = [Concept("0", prompts=("0",))]
    edit = quick(raw, erase)
    middle = {name for name in raw.weights() if ".mid" in name and ".conv1." in name}
    assert set(edit.delta) == (set(raw.weights()) if method is FINETUNE else middle)
    with edit.applied(raw) as edited, torch.no_grad():
        x, c = torch.randn(2, 1, 28, 28), raw.encode(["0"])
        assert (edited.eps(x, 500, c) - raw.eps(x, 500, c)).abs().max() > 1e-5
    with (0.0 * edit).applied(raw) as same, torch.no_grad():
        assert torch.equal(same.eps(x, 500, c), raw.eps(x, 500, c))


def test_fine_tuning_shows_the_anchors_under_the_target_and_under_their_own_names():
    erase = [Concept("0", anchor=a) for a in ("1", "2")]
    assert [pair for concept in erase for pair in FINETUNE.prompts(concept, ())] == [("1", "0"), ("2", "0")]
