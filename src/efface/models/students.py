"""Students: views of a model to train, which share all tensors with it but the trained ones."""

from collections.abc import Mapping

from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from efface.models.model import Model


def view(model: Model, values: Mapping[str, Tensor]) -> Model:
    """Return a frozen model with other values for some weights; no tensor is copied."""
    parts = [part for part in model.family.PARTS if part != "vae" and isinstance(model.part(part), nn.Module)]
    old = {name: p.data for part in parts for name, p in model.weights(f"{part}.").items()}
    student = model.edited(old | dict(values))
    for part in parts:
        student.part(part).requires_grad_(False)
    height, width = model.latent_shape[1:]
    stock = all(type(p) is AttnProcessor2_0 for p in getattr(student.denoiser, "attn_processors", {}).values())
    if stock and model.device.type == "cpu" and height * width <= 1024:
        # the backward pass of fused attention is slow on CPUs; at 64x64 latents memory matters more
        student.denoiser.set_attn_processor(AttnProcessor())
    return student
