import pytest
import torch

from efface.context import Context
from efface.models import attention
from efface.models.model import Model


@pytest.mark.parametrize("which", ["tiny", "tiny2"])
def test_recording_changes_nothing_and_gives_probabilities(which: str, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(which)
    x, c = torch.randn(2, 4, 8, 8), model.encode(["a church", "a dog"])
    plain = model.eps(x, 300, c)
    processors = model.denoiser.attn_processors
    with attention.recorded(model) as maps:
        ours = model.eps(x, 300, c)
        model.eps(x, 200, c)
    assert (ours - plain).abs().max() <= 1e-5
    assert len(maps) == 4
    for name, recorded in maps.items():
        assert name.endswith("attn2")
        assert len(recorded) == 2
        heads = model.denoiser.get_submodule(name).heads
        batch, own_heads, pixels, length = recorded[0].shape
        assert (batch, own_heads, length) == (2, heads, 16)
        assert pixels in (64, 16)
        assert torch.allclose(recorded[0].sum(-1), torch.ones(()), atol=1e-5)
    assert model.denoiser.attn_processors == processors
    assert torch.equal(model.eps(x, 300, c), plain)


def test_maps_carry_gradients(tiny: Model):
    c = Context(tiny.encode(["a church"]).tokens.detach().requires_grad_())
    with attention.recorded(tiny) as maps:
        tiny.eps(torch.randn(1, 4, 8, 8), 300, c)
    sum(recorded[0][..., 2].sum() for recorded in maps.values()).backward()
    assert c.tokens.grad is not None
    assert c.tokens.grad.abs().sum() > 0


def test_the_processors_are_put_back_after_an_exception(tiny: Model):
    before = tiny.denoiser.attn_processors
    with pytest.raises(ZeroDivisionError), attention.recorded(tiny) as maps:
        maps["x"] = [torch.tensor(1 / 0)]
    assert tiny.denoiser.attn_processors == before
