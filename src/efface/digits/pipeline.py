"""The digits model as a pipeline that `Model` can view: a UNet on pixels, an identity for an autoencoder."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from efface.concept import Concept
from efface.digits.data import CLASSES, check
from efface.digits.net import SIDE, DigitUNet
from efface.digits.prompts import Passing, Reader
from efface.digits.training import noise_schedule
from efface.errors import BadModel
from efface.models.model import Model
from efface.util.files import load_safetensors

WEIGHTS = Path(__file__).parent / "weights"


class Pixels(nn.Module):
    """Stand where an autoencoder would: latents are pixels in [-1, 1], one channel for three equal ones."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=None, block_out_channels=(1,), sample_size=SIDE)
    dtype = torch.float32
    device = torch.device("cpu")

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> SimpleNamespace:
        """Return an object whose latent_dist.mode() is the grey of the images."""
        grey = images.mean(1, keepdim=True)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: grey))

    def decode(self, latents: Float[Tensor, "b 1 h w"], return_dict: bool = False) -> tuple[Tensor]:
        """Return (images,)."""
        return (latents.expand(-1, 3, -1, -1),)


class DigitsPipeline(DiffusionPipeline):
    """Hold the parts by the names that `Model` asks for."""

    def __init__(self, unet: DigitUNet, vae: Pixels, text_encoder: Passing, tokenizer: Reader, scheduler: Any):
        super().__init__()
        self.register_modules(
            unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, *_args: Any, **_options: Any) -> Any:
        """Refuse: `Model.generate` draws."""
        raise BadModel("the digits model draws through efface.Model, not through its pipeline")


def assemble(unet: DigitUNet, names: tuple[str, ...], codes: Tensor, scheduler: DDIMScheduler | None = None) -> Model:
    """Put a model together from its UNet, the names of its classes and their vectors (classes, 8)."""
    unet.eval().requires_grad_(False)
    pipe = DigitsPipeline(unet, Pixels(), Passing(), Reader(names, codes), scheduler or noise_schedule())
    return Model(pipe)


def load(dataset: str = "mnist", folder: Path = WEIGHTS) -> Model:
    """Load the model of a data set ("mnist", "fashion"). Raises `BadModel` when it has no weights, `UnknownName`."""
    unet = DigitUNet()
    unet.load_state_dict(_part(dataset, folder, "unet"))
    codes = _read(dataset, folder)[0]["codes"]
    return replace(assemble(unet, CLASSES[dataset], codes), name=f"digits:{dataset}")


def concept(dataset: str, name: str, anchor: str = "") -> Concept:
    """Return a class as a concept whose one prompt is its name."""
    return Concept(name, prompts=(name,), anchor=anchor)


def _read(dataset: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / f"{check(dataset)}.safetensors"
    if not path.is_file():
        raise BadModel(f"the digits model of {dataset} has no weights in {folder}: train it with `efface digits train`")
    return load_safetensors(path)


def _part(dataset: str, folder: Path, name: str) -> dict[str, Tensor]:
    tensors, _ = _read(dataset, folder)
    found = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
    return {key: t.float() if t.is_floating_point() else t for key, t in found.items()}
