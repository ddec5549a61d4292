"""Tiny pipelines of each architecture without text encoders, and edits made by hand."""

import copy
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from efface.edits.edit import Edit
from efface.edits.parts import TextMap


def flux() -> FluxPipeline:
    """Make a random FLUX of one double and one single block, with texts 32 wide."""
    torch.manual_seed(4)
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    none: Any = None
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), none, none, none, none, none, transformer.eval())


def sd3() -> StableDiffusion3Pipeline:
    """Make a random SD3 of two blocks, with texts 32 wide."""
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
    )
    none: Any = None
    scheduler = FlowMatchEulerDiscreteScheduler()
    return StableDiffusion3Pipeline(transformer.eval(), scheduler, *(none,) * 7)


def text_map(names: list[str], width: int, rank: int = 2, seed: int = 0) -> Edit:
    """Return an edit that is a text map of small values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(width, rank, generator=generator), torch.randn(rank, width, generator=generator)
    return Edit(maps=(TextMap(tuple(names), 0.05 * left, right),))


def dense(shapes: dict[str, tuple[int, ...]], seed: int = 0, size: float = 0.02) -> Edit:
    """Return an edit of random dense differences."""
    generator = torch.Generator().manual_seed(seed)
    return Edit(delta={name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def text_weights(pipe: Any) -> list[str]:
    """Return the names of a pipeline's weights that read the text."""
    if hasattr(pipe, "transformer"):
        return ["transformer.context_embedder.weight"]
    ends = (".attn2.to_k.weight", ".attn2.to_v.weight")
    return [f"unet.{name}" for name, _ in pipe.unet.named_parameters() if name.endswith(ends)]


def matrices(pipe: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights that a LoRA can change."""
    part = part_of(pipe)
    return {f"{part}.{name}": tuple(w.shape) for name, w in getattr(pipe, part).named_parameters() if w.dim() > 1}


def inputs(denoiser: Any) -> dict[str, Any]:
    """Return random inputs for one image of a tiny denoiser of these tests."""
    generator = torch.Generator().manual_seed(9)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = denoiser.config
    if isinstance(denoiser, FluxTransformer2DModel):
        given = {"timestep": torch.tensor([0.3]), "guidance": torch.tensor([2.0]), "hidden_states": noise(1, 4, 4)}
        ids = {"img_ids": torch.tensor([[0.0, i // 2, i % 2] for i in range(4)]), "txt_ids": torch.zeros(5, 3)}
        return given | ids | {"encoder_hidden_states": noise(1, 5, 32), "pooled_projections": noise(1, 32)}
    if isinstance(denoiser, SD3Transformer2DModel):
        given = {"timestep": torch.tensor([300.0]), "hidden_states": noise(1, 4, 8, 8)}
        return given | {"encoder_hidden_states": noise(1, 5, 32), "pooled_projections": noise(1, 64)}
    given = {"sample": noise(1, 4, 8, 8), "timestep": 300}
    given["encoder_hidden_states"] = noise(1, 5, config.cross_attention_dim)
    if config.addition_embed_type:
        given["added_cond_kwargs"] = {"text_embeds": noise(1, 48), "time_ids": noise(1, 6)}
    return given


def output(denoiser: Any) -> Tensor:
    """Return a denoiser's output for these inputs, in its own precision."""

    def cast(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cast(one) for name, one in value.items()}
        return value.to(denoiser.dtype) if isinstance(value, Tensor) else value

    with torch.no_grad():
        return denoiser(**cast(inputs(denoiser)), return_dict=False)[0]


def twin(pipe: Any) -> Any:
    """Return a pipeline with a denoiser of its own, in float64, so that only the file's rounding is seen."""
    copied = copy.copy(pipe)
    for part in ("unet", "transformer"):
        if getattr(pipe, part, None) is not None:
            setattr(copied, part, copy.deepcopy(getattr(pipe, part)).double())
    return copied


def part_of(pipe: Any) -> str:
    """Return the name of a pipeline's denoiser."""
    return "transformer" if hasattr(pipe, "transformer") else "unet"


def edited_output(pipe: Any, edit: Edit) -> Tensor:
    """Return the output after an edit, added to the weights by hand."""
    denoiser = getattr(twin(pipe), part_of(pipe))
    for full in edit.names:
        weight = denoiser.get_parameter(full.partition(".")[2])
        change = edit.delta.get(full, torch.zeros_like(weight)).double()
        for one in edit.maps:
            change = change + (weight @ one.left.double() @ one.right.double() if full in one.names else 0)
        weight.data = weight.data + change
    return output(denoiser)
