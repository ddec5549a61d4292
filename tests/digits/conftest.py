"""An analytic digits model: the image is a known function of the prompt."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from efface.digits import pipeline
from efface.digits.net import DigitUNet
from efface.digits.prompts import Words, normalised
from efface.judge import Judge, Profile
from efface.models.model import Model

NAMES = tuple("0123456789")


class Lamp(DigitUNet):
    """Predict an image whose brightness is tanh(4 (c · w − 0.5)): the more the prompt is like w, the brighter."""

    def __init__(self, w: torch.Tensor):
        super().__init__(channels=(8, 8), emb=8, groups=4)
        self.w = nn.Parameter(w)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=False):
        """Return (x_0,)."""
        light = torch.tanh(4 * (encoder_hidden_states[:, 0] @ self.w - 0.5))
        return (light[:, None, None, None] + 0 * sample,)


class Brightness(Judge):
    """Judge whose probability of "0" is the image's brightness."""

    classes, profile = NAMES, Profile(evaluator="brightness")

    def __init__(self) -> None:
        self.seen = 0

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        """Return (brightness, the rest evenly)."""
        self.seen += len(images)
        light = images.mean((1, 2, 3))
        return torch.cat([light[:, None], ((1 - light) / 9)[:, None].expand(-1, 9)], 1)


def words(first: torch.Tensor | None = None) -> Words:
    """Return a table of ten classes, random unit vectors that are the same every time, but for the first."""
    made, codes = Words(10), torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    codes = normalised(codes)
    made.load_state_dict({"table.weight": codes if first is None else torch.cat([first[None], codes[1:]])})
    return made


@pytest.fixture
def lamp() -> SimpleNamespace:
    """Return a model whose class "0" is at w, w itself (off every grid), and its judge."""
    w = normalised(torch.tensor([0.9, -0.2, 0.45, 0.3, -0.8, 0.1, 0.6, -0.5]))
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    model = Model(pipeline.assemble(Lamp(w), words(w), NAMES, scheduler))
    return SimpleNamespace(model=model, w=w, judge=Brightness())


@pytest.fixture(scope="session")
def raw() -> Model:
    """Return an untrained digits model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = DigitUNet(channels=(8, 16), emb=16, groups=4)
    for block in unet.modules():  # the second convolution of a block starts at zero, which would hide the prompt
        if hasattr(block, "conv2"):
            nn.init.kaiming_uniform_(block.conv2.weight, generator=torch.Generator().manual_seed(1))
    return Model(pipeline.assemble(unet, words(), NAMES))
