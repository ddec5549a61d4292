import pytest
import torch

from efface.errors import BadInput
from efface.methods.surgical import Surgical
from efface.models.model import Model
from efface.models.purification import purify


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Smooth(Model):
    """A model whose noise is a smooth function, as a random network's is not."""

    def eps(self, x, t, c):
        return 0.5 * torch.sin(3 * x) + 0.2 * torch.as_tensor(t).reshape(-1, 1, 1, 1) / 1000


def test_inversion_and_back_is_nearly_the_image(tiny, images):
    """DDIM inversion is exact in the limit of many steps; against the autoencoder's own reconstruction."""
    model = Smooth(tiny.pipe)
    plain = model.decode(model.encode_images(images))
    errors = [float((purify(model, images, steps=n) - plain).abs().mean()) for n in (10, 40, 160)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert float((purify(model, images, steps=40, depth=0.0) - plain).abs().mean()) < errors[1]


def test_a_purifying_edit_changes_the_image(tiny, images):
    method = Surgical.preset("purification", **{**Surgical.QUICK, "lr": 1e-2})
    with method(tiny, ["church"]).applied(tiny) as edited:
        assert not torch.allclose(purify(edited, images, "church", 5), purify(tiny, images, "church", 5), atol=1e-4)
        assert purify(edited, images, "church", 5, guidance=3.0).shape == images.shape


def test_bad_input(tiny, images):
    with pytest.raises(BadInput, match="depth"):
        purify(tiny, images, depth=1.5)
    with pytest.raises(BadInput, match="sampling steps"):
        purify(tiny, images, steps=0)
