"""Outputs of a denoiser for fixed random inputs, to see whether what was written does what the edit does."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadEdit

TOKENS, SIDE = 8, 4  # of the text; of the image, in the smallest units that the denoiser reads
ROUNDING = 2e-5  # of an output in float32, relative to its norm
ALLOWED = 1e-3  # relative to what a file changes in the output


def outputs(denoiser: Any) -> Float[Tensor, "..."]:
    """Return a denoiser's output for two random images and texts. Raises `BadEdit` for a denoiser of another class."""
    make = INPUTS.get(type(denoiser).__name__)
    if make is None:
        raise BadEdit(f"outputs of a {type(denoiser).__name__} cannot be compared: known are {', '.join(INPUTS)}")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(denoiser.dtype)

    with torch.inference_mode():
        return denoiser(**make(denoiser.config, noise), return_dict=False)[0].float()


Noise = Callable[..., Tensor]


def _unet(config: Any, noise: Noise) -> dict[str, Any]:
    side = SIDE * 2 ** len(config.block_out_channels)
    found: dict[str, Any] = {"sample": noise(config.in_channels, side, side), "timestep": torch.tensor([500, 500])}
    found["encoder_hidden_states"] = noise(TOKENS, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)
        found["added_cond_kwargs"] = {"text_embeds": noise(pooled), "time_ids": sizes}
    return found


def _sd3(config: Any, noise: Noise) -> dict[str, Any]:
    side = config.patch_size * SIDE
    return {
        "hidden_states": noise(config.in_channels, side, side),
        "encoder_hidden_states": noise(TOKENS, config.joint_attention_dim),
        "pooled_projections": noise(config.pooled_projection_dim),
        "timestep": torch.tensor([500.0, 500.0]),
    }


def _flux(config: Any, noise: Noise) -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    found = {
        "hidden_states": noise(SIDE * SIDE, config.in_channels),
        "encoder_hidden_states": noise(TOKENS, config.joint_attention_dim),
        "pooled_projections": noise(config.pooled_projection_dim),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(TOKENS, 3),
    }
    return found | ({"guidance": torch.tensor([3.5, 3.5])} if config.guidance_embeds else {})


INPUTS: Mapping[str, Callable[[Any, Noise], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}


@contextmanager
def silent() -> Iterator[None]:
    """Silence the warnings of diffusers and PEFT about what they load: outputs are compared instead."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(50)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def with_values(denoiser: Any, values: Mapping[str, Tensor]) -> Iterator[Any]:
    """Give a denoiser other values for some weights inside the block."""
    before = {name: denoiser.get_parameter(name).data for name in values}
    try:
        for name, value in values.items():
            denoiser.get_parameter(name).data = value.to(before[name])
        yield denoiser
    finally:
        for name, value in before.items():
            denoiser.get_parameter(name).data = value


def difference(before: Tensor, expected: Tensor, after: Tensor, what: str, allowed: float) -> float:
    """Return how far outputs are from what the edit gives, relative to what the edit changes.

    allowed: the largest. Raises `BadEdit`, which begins with `what`, when nothing changed, or something else did.
    """
    moved = float((expected - before).norm())
    if torch.equal(after, before) and moved > 0:
        raise BadEdit(f"{what} changes nothing: the denoiser's outputs are those of the original model")
    gap, rounding = float((after - expected).norm()), ROUNDING * float(before.norm())
    if gap > allowed * moved + rounding:
        raise BadEdit(
            f"{what} does something else than the edit: the denoiser's outputs are {gap / max(moved, 1e-30):.2g} of "
            f"the edit's change away from those of the edited model, at most {allowed:.2g} are rounding"
        )
    return gap / moved if moved else 0.0
