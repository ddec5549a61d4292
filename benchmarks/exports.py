"""Sizes, seconds and memory of exports at full size: random weights that read the text, in the shapes of each model.

    python benchmarks/exports.py            # LoRA of 1 to 10 directions
    python benchmarks/exports.py --diff     # and full differences

No model is downloaded: the denoisers are built from their published configurations without values, and the weights that
read the text are random.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from efface.edits.edit import Edit
from efface.edits.parts import TextMap
from efface.export import spoken
from efface.exporting.base import Base
from efface.registry import make

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
MODELS: dict[str, tuple[type[Any], dict[str, Any], str]] = {  # (class, published configuration, ends of text weights)
    "SD 1.x": (
        UNet2DConditionModel,
        {
            "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
            "down_block_types": (CROSS_DOWN,) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + (CROSS_UP,) * 3,
        },
        "attn2",
    ),
    "SDXL": (
        UNet2DConditionModel,
        {
            "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
            "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
            "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
            "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
        },
        "attn2",
    ),
    "SD3-M": (SD3Transformer2DModel, {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
                                      "joint_attention_dim": 4096, "pooled_projection_dim": 2048}, "context_embedder"),
    "FLUX.1": (FluxTransformer2DModel, {"guidance_embeds": True}, "context_embedder"),
}  # fmt: skip


def base_of(name: str) -> tuple[Base, list[str], int]:
    """Return a model with random text weights, their names, and the width of its texts."""
    kind, config, which = MODELS[name]
    with init_empty_weights():
        denoiser = kind(**config)
    part = "unet" if kind is UNet2DConditionModel else "transformer"
    shapes = {f"{part}.{key}": tuple(value.shape) for key, value in denoiser.named_parameters()}
    ends = (".to_k.weight", ".to_v.weight") if which == "attn2" else (".weight",)
    names = [key for key in shapes if f".{which}." in key and key.endswith(ends)]
    generator = torch.Generator().manual_seed(0)

    def read(wanted: Sequence[str]) -> dict[str, Tensor]:
        return {key: 0.02 * torch.randn(shapes[key], generator=generator) for key in wanted}

    width = int(shapes[names[0]][1])
    return Base(name, part, kind, denoiser.config, shapes, read, lambda: None), names, width


def main() -> None:
    """Print a row for each model, format and number of directions."""
    print(
        f"{'model':8}{'weights':>9}{'format':>17}{'directions':>12}{'MB':>9}{'error':>10}{'seconds':>9}{'peak GB':>9}"
    )
    for name in MODELS:
        base, names, width = base_of(name)
        formats = ["diffusers_lora"] + (["kohya_lora"] if base.part == "unet" else [])
        formats += ["diff"] if "--diff" in sys.argv else []
        for rank in (1, 10):
            generator = torch.Generator().manual_seed(rank)
            left, right = torch.randn(width, rank, generator=generator), torch.randn(rank, width, generator=generator)
            edit = Edit(maps=(TextMap(tuple(names), left / width, right),))
            for to in formats:
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    report = make("exports", to)(edit, base, Path(folder, "x.safetensors"), compare="weights")
                    seconds = time.perf_counter() - start
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
                print(
                    f"{name:8}{len(names):9}{spoken(to):>17}{rank:12}{report.size / 1e6:9.3f}{report.error:10.1e}"
                    f"{seconds:9.2f}{peak:9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
