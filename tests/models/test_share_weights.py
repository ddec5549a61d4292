import pytest
import torch
from torch import nn

from efface.errors import BadModel
from efface.models.share_weights import with_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.c = self.a
        self.d = nn.Linear(3, 3, bias=False)
        self.d.weight = self.a.weight
        self.nothing = None
        self.register_module("empty", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(self.b(self.a(x))))


def test_a_view_shares_all_but_the_named():
    module = Tied().eval()
    value = torch.randn(3, 3)
    view = with_weights(module, {"b.0.weight": value})
    assert view.a.weight is module.a.weight
    assert view.b[0].bias is module.b[0].bias
    assert torch.equal(view.b[0].weight, value)
    assert not torch.equal(module.b[0].weight, value)
    assert isinstance(view, Tied)
    assert list(view.state_dict()) == list(module.state_dict())
    x = torch.randn(2, 3)
    module.b[0].weight.data.copy_(value)
    assert torch.equal(view(x), module(x))


def test_tied_weights_and_modules_stay_tied():
    view = with_weights(Tied(), {"a.weight": torch.eye(3)})
    assert view.c is view.a
    assert view.d.weight is view.a.weight
    assert torch.equal(view.d.weight, torch.eye(3))


def test_hooks_and_children_of_a_view_are_its_own():
    module = Tied()
    view = with_weights(module, {"a.weight": torch.eye(3)})
    view.b.register_forward_hook(lambda *_: None)
    view.b.add_module("more", nn.Identity())
    assert not module.b._forward_hooks
    assert len(module.b) == 2
    view.train(False)
    assert module.training


def test_training_flags_are_kept():
    module = Tied().requires_grad_(False)
    module.b[0].weight.requires_grad_(True)
    view = with_weights(module, {"b.0.weight": torch.eye(3), "a.weight": torch.eye(3)})
    assert view.b[0].weight.requires_grad
    assert not view.a.weight.requires_grad


def test_a_replaced_forward_is_refused():
    module = Tied()
    module.b.forward = module.b.forward
    with pytest.raises(BadModel, match="replaced forward"):
        with_weights(module, {"a.weight": torch.eye(3)})
