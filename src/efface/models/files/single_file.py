"""Single-file checkpoints in Stable Diffusion's original layout, loaded offline.

diffusers would ask the hub for the configuration; here it is read off the tensors' shapes. What shapes cannot tell
is Stable Diffusion's own: 8 attention heads (1.x) or heads of 64 channels (2.x), groups of 32 channels, the noise
schedule.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from efface.errors import BadFile, BadModel
from efface.models.files.tokenizer import find_tokenizer
from efface.util.files import check_safetensors, safetensors_meta

if TYPE_CHECKING:
    import os

    import torch

Shapes = Mapping[str, list[int]]
Prediction = Literal["", "epsilon", "v_prediction"]
UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."  # Stable Diffusion 1.x: OpenAI's text encoder
OPEN_CLIP = "cond_stage_model.model."  # Stable Diffusion 2.x: OpenCLIP's, read before its last layer


def load_single_file(
    path: Path,
    dtype: "torch.dtype",
    tokenizer: "str | os.PathLike[str] | None" = None,
    prediction: Prediction = "",
) -> Any:
    """Return a StableDiffusionPipeline from a .safetensors checkpoint of Stable Diffusion 1.x or 2.x.

    tokenizer: a folder with vocab.json and merges.txt (or tokenizer.json); by default CLIP's, see `find_tokenizer`.
    prediction: what the denoiser predicts; by default what the header says (modelspec), else epsilon for 1.x and
    v_prediction for 2.x. Raises `BadFile` and `BadModel`.
    """
    from diffusers import StableDiffusionPipeline

    shapes = {name: entry["shape"] for name, entry in check_safetensors(path).items()}
    meta = safetensors_meta(path)
    _check_kind(path, shapes, meta)
    try:
        configs = _configs(shapes, meta, prediction)
    except (KeyError, IndexError, ValueError) as error:
        raise BadModel(f"{path} is not a complete Stable Diffusion checkpoint: no tensor {error}") from error
    words = find_tokenizer(path, tokenizer, shapes[_embedding(shapes)][0], pad="!" if _open_clip(shapes) else "")
    words.model_max_length = configs["text_encoder"]["max_position_embeddings"]
    with tempfile.TemporaryDirectory(prefix="efface-") as folder:
        for part, config in configs.items():
            home = Path(folder, part) if part != "model_index" else Path(folder)
            home.mkdir(exist_ok=True)
            (home / _FILES.get(part, "config.json")).write_text(json.dumps(config))
        try:
            pipe = StableDiffusionPipeline.from_single_file(
                str(path), config=folder, local_files_only=True, torch_dtype=dtype, tokenizer=words
            )
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            if "meta tensor" in reason:  # what was not in the file has no values yet
                raise BadModel(f"{path} is not a complete Stable Diffusion checkpoint: tensors are missing") from error
            raise BadModel(f"{path} is not a Stable Diffusion checkpoint diffusers can read: {reason}") from error
    _check_complete(path, pipe)
    return pipe


_FILES = {"model_index": "model_index.json", "scheduler": "scheduler_config.json"}


def _check_kind(path: Path, shapes: Shapes, meta: Mapping[str, str]) -> None:
    if "efface" in meta:
        raise BadModel(f"{path} is an efface edit, not a model: give the model it was made on, and this as the edit")
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        raise BadModel(f"{path} is an SDXL checkpoint, which is read only as a diffusers folder: convert it first")
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise BadFile(f"{path} is not a Stable Diffusion checkpoint: it has no {UNET}* tensors")
    if not any(name.startswith((CLIP, OPEN_CLIP)) for name in shapes):
        raise BadModel(f"{path} has no text encoder: give a full checkpoint, not a pruned one")
    channels, latents = shapes[f"{UNET}input_blocks.0.0.weight"][1], shapes.get(f"{UNET}out.2.weight", [0])[0]
    if channels != latents:
        raise BadModel(f"{path} is no text-to-image model: its denoiser reads {channels} channels and writes {latents}")


def _configs(shapes: Shapes, meta: Mapping[str, str], prediction: Prediction) -> dict[str, dict[str, Any]]:
    kind = prediction or _prediction(shapes, meta)
    vae, unet = _vae(shapes), _unet(shapes)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = meta.get("modelspec.resolution", "").partition("x")[0]
    default = 96 if kind == "v_prediction" else 64
    unet["sample_size"] = int(pixels) // factor if pixels.isdecimal() else default
    vae["sample_size"] = unet["sample_size"] * factor
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    schedule |= {"num_train_timesteps": 1000, "set_alpha_to_one": False, "prediction_type": kind, "clip_sample": False}
    scheduler = "PNDMScheduler" if kind == "epsilon" else "DDIMScheduler"
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "requires_safety_checker": False,
    }
    return {
        "model_index": index,
        "unet": unet,
        "vae": vae,
        "text_encoder": _text_encoder(shapes),
        "scheduler": {"_class_name": scheduler, **schedule, "skip_prk_steps": True},
    }


def _prediction(shapes: Shapes, meta: Mapping[str, str]) -> Prediction:
    said = meta.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction") or "v_pred" in shapes:
        return "v_prediction"
    if said:
        return "epsilon"
    return "v_prediction" if _open_clip(shapes) else "epsilon"


def _unet(shapes: Shapes) -> dict[str, Any]:
    """Read the denoiser's configuration: one level per run of blocks between two downsamplings."""
    levels: list[list[int]] = [[]]  # channels of every residual block, by level
    attends: list[bool] = [False]
    width = 0
    linear = False
    number = 1
    while any(f"{UNET}input_blocks.{number}.0.{key}" in shapes for key in ("op.weight", "out_layers.3.weight")):
        block = f"{UNET}input_blocks.{number}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
            attends.append(False)
        else:
            levels[-1].append(shapes[f"{block}0.out_layers.3.weight"][0])
        if f"{block}1.proj_in.weight" in shapes:
            attends[-1] = True
            width = shapes[f"{block}1.transformer_blocks.0.attn2.to_k.weight"][1]
            linear = len(shapes[f"{block}1.proj_in.weight"]) == 2
        number += 1
    channels = [level[0] for level in levels]
    downs = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": downs,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(downs)],
        "cross_attention_dim": width,
        "attention_head_dim": [max(1, channel // 64) for channel in channels] if linear else 8,  # number of heads
        "use_linear_projection": linear,
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    count = 0
    while f"{VAE}encoder.down.{count}.block.0.conv1.weight" in shapes:
        count += 1
    layers = 0
    while f"{VAE}encoder.down.0.block.{layers}.conv1.weight" in shapes:
        layers += 1
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(count)],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": layers,
        "latent_channels": shapes[f"{VAE}post_quant_conv.weight"][0],
        "scaling_factor": 0.18215,
    }


def _open_clip(shapes: Shapes) -> bool:
    return f"{OPEN_CLIP}token_embedding.weight" in shapes


def _embedding(shapes: Shapes) -> str:
    return f"{OPEN_CLIP}token_embedding.weight" if _open_clip(shapes) else f"{CLIP}embeddings.token_embedding.weight"


def _text_encoder(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes[_embedding(shapes)]
    if _open_clip(shapes):
        length = shapes[f"{OPEN_CLIP}positional_embedding"][0]
        layer, part = f"{OPEN_CLIP}transformer.resblocks.{{}}.", "mlp.c_fc.weight"
    else:
        length = shapes[f"{CLIP}embeddings.position_embedding.weight"][0]
        layer, part = f"{CLIP}encoder.layers.{{}}.", "mlp.fc1.weight"
    count = 0
    while layer.format(count) + part in shapes:
        count += 1
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[layer.format(0) + part][0],
        "num_hidden_layers": count - 1 if _open_clip(shapes) else count,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": length,
        "hidden_act": "gelu" if _open_clip(shapes) else "quick_gelu",
        "projection_dim": width,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0 if _open_clip(shapes) else words - 1,
    }


def _check_complete(path: Path, pipe: Any) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for name, parameter in getattr(pipe, part).named_parameters():
            if parameter.is_meta:
                raise BadModel(
                    f"{path} is not a complete Stable Diffusion checkpoint: it has nothing for {part}.{name}"
                )
