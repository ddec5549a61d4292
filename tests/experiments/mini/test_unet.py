"""The head that reads from the denoiser which object is where."""

import pytest
import torch

from experiments.mini import unet
from experiments.mini.nouns import NAMES
from experiments.mini.text import WIDTH


def test_the_head_teaches_what_reads_the_caption() -> None:
    torch.manual_seed(0)
    denoiser = unet.denoiser()
    where = unet.Seen(denoiser)
    denoiser(torch.randn(2, 4, 16, 16), torch.tensor([999, 500]), torch.randn(2, 24, WIDTH))
    cells = torch.zeros(2, 8, 8, dtype=torch.uint8)
    cells[0, 2:6, 2:6] = 7
    where.loss(cells).backward()
    reads = [p for name, p in denoiser.named_parameters() if name.endswith("attn2.to_k.weight") and "up_" not in name]
    assert reads
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in reads)
    assert denoiser.conv_out.weight.grad is None  # what draws is taught by the noise alone


def test_the_loss_falls_with_what_is_right_and_objects_weigh_more_than_the_ground() -> None:
    denoiser = unet.denoiser()
    where = unet.Seen(denoiser)
    cells = torch.zeros(1, 8, 8, dtype=torch.uint8)
    cells[0, :4] = 1 + NAMES.index("church")
    right = torch.nn.functional.one_hot(cells.long(), 1 + len(NAMES)).permute(0, 3, 1, 2).float() * 20

    class Says(torch.nn.Module):
        def __init__(self, told: torch.Tensor):
            super().__init__()
            self.told = told

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return self.told

    def loss(told: torch.Tensor) -> float:
        where.layer = Says(told)
        return float(where.loss(cells))

    assert loss(right) == pytest.approx(0, abs=1e-4)
    object_missed, ground_missed = right.clone(), right.clone()
    object_missed[0, :, 0, 0] = right[0, :, 7, 0]
    ground_missed[0, :, 7, 0] = right[0, :, 0, 0]
    assert loss(object_missed) == pytest.approx(loss(ground_missed) / 0.3, rel=1e-3)


def test_the_head_does_not_ship() -> None:
    trained, plain = unet.denoiser(), unet.denoiser()
    unet.Seen(trained)
    extra = set(trained.state_dict()) - set(plain.state_dict())
    assert extra == {"cells.weight", "cells.bias"}
