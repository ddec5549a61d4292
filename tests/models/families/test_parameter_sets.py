"""Parameter sets on Stable Diffusion 1.4's layout, against the names and modules that the official codes choose by."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from efface.models.families.sd import StableDiffusion
from efface.models.families.sdxl import SDXL
from efface.models.files.original_layout import UNET, unet_key

WEIGHTS = 859_520_964  # of Stable Diffusion 1.4's UNet


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.fixture(scope="module")
def originals(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return the name of every parameter in the original layout, without its prefix."""
    config = dict(unet.config)
    return {n: unet_key(n, config).key.removeprefix(UNET) for n, _ in unet.named_parameters()}


def ends(name: str) -> bool:
    return name.startswith("out.") or "time_embed" in name


OLD_CODE = {  # train-esd.py
    "full": lambda n: True,
    "x": lambda n: "attn2" in n,
    "selfattn": lambda n: "attn1" in n,
    "u": lambda n: not ends(n) and "attn2" not in n,  # noxattn
    "notime": lambda n: not ends(n),
    "xlayer": lambda n: "attn2" in n and ("output_blocks.6." in n or "output_blocks.8." in n),
    "selflayer": lambda n: "attn1" in n and ("input_blocks.4." in n or "input_blocks.7." in n),
}
COUNTS = {"full": 686, "x": 80, "selfattn": 80, "u": 598, "notime": 678, "xlayer": 10, "selflayer": 10}


@pytest.mark.parametrize("name", OLD_CODE)
def test_the_sets_are_those_of_the_old_code(name: str, originals: dict[str, str]):
    chosen = {n for n in originals if StableDiffusion.SETS[name](f"unet.{n}")}
    assert chosen == {n for n, original in originals.items() if OLD_CODE[name](original)}
    assert len(chosen) == COUNTS[name]


def linear(unet: UNet2DConditionModel) -> set[str]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = [(name, module) for name, module in unet.named_modules() if type(module) in kinds]
    return {f"{name}.{n}" for name, module in modules for n, _ in module.named_parameters()}


def test_the_sets_are_those_of_the_2025_code(unet: UNet2DConditionModel, originals: dict[str, str]):
    assert sum(p.numel() for p in unet.parameters()) == WEIGHTS
    outside = {n for n in linear(unet) if "attn2" not in n}
    assert {n for n in originals if StableDiffusion.SETS["u-linear"](f"unet.{n}")} == outside
    xl = {n for n in outside if "emb" not in n and "block" in n}
    assert {n for n in originals if SDXL.SETS["u-linear"](f"unet.{n}")} == xl
    strict = {n for n in originals if StableDiffusion.SETS["x-strict"](f"unet.{n}")}
    assert strict == {n for n in originals if "attn2.to_k" in n or "attn2.to_v" in n}
    assert len(strict) == 32
