"""Architectures of denoisers that other tools run, and the names of their modules in the original layouts.

The names are data, read in ComfyUI's comfy/utils.py (`unet_to_diffusers`, `flux_to_diffusers`, `mmdit_to_diffusers`)
and checked against diffusers' conversions. Nothing here imports torch before an original name is asked for.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Names = tuple[tuple[str, str], ...]  # (pattern of a module in diffusers, its original name)


class Architecture(NamedTuple):
    """Describe a kind of denoiser.

    title: its name in messages. denoiser: its class in diffusers. part: of a pipeline. original: the names of its
    modules in the original layout, () for UNets, whose names depend on the configuration. Modules that the original
    layout fuses into one (queries, keys and values) have none.
    """

    title: str
    denoiser: str
    part: str
    original: Names = ()


BLOCK = r"transformer_blocks\.(\d+)\."
EMBEDDERS = r"time_text_embed\.{}_embedder\.linear_{}"


def _embedder(ours: str, original: str, layers: tuple[str, str]) -> Names:
    return tuple((EMBEDDERS.format(ours, i + 1), f"{original}.{layer}") for i, layer in enumerate(layers))


def _block(ours: Mapping[str, str], original: str) -> Names:
    return tuple((BLOCK + re.escape(name), f"{original}.\\1.{theirs}") for name, theirs in ours.items())


FLUX: Names = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("proj_out", "final_layer.linear"),
    *_embedder("timestep", "time_in", ("in_layer", "out_layer")),
    *_embedder("text", "vector_in", ("in_layer", "out_layer")),
    *_embedder("guidance", "guidance_in", ("in_layer", "out_layer")),
    *_block(
        {
            "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
            "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        },
        "double_blocks",
    ),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
)  # fmt: skip
SD3: Names = (
    (r"pos_embed\.proj", "x_embedder.proj"),
    ("context_embedder", "context_embedder"),
    ("proj_out", "final_layer.linear"),
    *_embedder("timestep", "t_embedder", ("mlp.0", "mlp.2")),
    *_embedder("text", "y_embedder", ("mlp.0", "mlp.2")),
    *_block(
        {
            "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
            "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
            "norm1.linear": "x_block.adaLN_modulation.1",
        },
        "joint_blocks",
    ),
)  # fmt: skip
ARCHITECTURES = {
    "sd": Architecture("Stable Diffusion 1.x and 2.x", "UNet2DConditionModel", "unet"),
    "sdxl": Architecture("SDXL", "UNet2DConditionModel", "unet"),
    "sd3": Architecture("SD3", "SD3Transformer2DModel", "transformer", SD3),
    "flux": Architecture("FLUX.1", "FluxTransformer2DModel", "transformer", FLUX),
}
PARTS = ("unet", "transformer")  # that are denoisers


def architecture_of(denoiser: str, config: Mapping[str, Any]) -> str:
    """Return the architecture of a denoiser, by its class and configuration; "" for another."""
    found = [name for name, one in ARCHITECTURES.items() if one.denoiser == denoiser]
    if found == ["sd", "sdxl"]:
        return "sdxl" if config.get("addition_embed_type") == "text_time" else "sd"
    return found[0] if found else ""


def original_module(architecture: str, module: str, config: Mapping[str, Any]) -> str:
    """Return a module's name in the original layout, without the prefix of the denoiser; "" where it has none."""
    table = ARCHITECTURES[architecture].original
    for pattern, original in table:
        if match := re.fullmatch(pattern, module):
            return match.expand(original)
    if table:
        return ""
    from efface.errors import BadModel
    from efface.models.files.original_layout import UNET, unet_key

    try:
        return unet_key(f"{module}.weight", config).key.removeprefix(UNET).removesuffix(".weight")
    except BadModel:
        return ""
