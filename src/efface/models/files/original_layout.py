"""The original layout of Stable Diffusion's checkpoints (CompVis, Stability AI), as far as families share it.

Configurations are derived from the tensors' shapes; what shapes cannot tell is as in Stable Diffusion: 8
attention heads (1.x) or heads of 64 channels, groups of 32 channels. The name of every weight in diffusers
and transformers is converted to the key it is stored under.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from efface.errors import BadModel
from efface.models.files.tensors import View

Shapes = Mapping[str, list[int]]
Config = Mapping[str, Any]
Configs = dict[str, dict[str, Any]]  # by part of the pipeline
UNET = "model.diffusion_model."
VAE = "first_stage_model."


class Stored(NamedTuple):
    """Hold the key under which a weight is stored, and its place in that tensor."""

    key: str
    view: View = "whole"


# --- configurations from shapes ---
def count(shapes: Shapes, pattern: str) -> int:
    """Return the number of keys of the form `key`, in which "{}" is a number counted from 0."""
    found = 0
    while pattern.format(found) in shapes:
        found += 1
    return found


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Read the denoiser's configuration: one level per run of blocks between two downsamplings."""
    levels: list[list[int]] = [[]]  # channels of every residual block, by level
    depths = [0]  # transformer blocks of each attention, by level
    width, linear, number = 0, False, 1
    while any(f"{UNET}input_blocks.{number}.0.{key}" in shapes for key in ("op.weight", "out_layers.3.weight")):
        block = f"{UNET}input_blocks.{number}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
            depths.append(0)
        else:
            levels[-1].append(shapes[f"{block}0.out_layers.3.weight"][0])
        if f"{block}1.proj_in.weight" in shapes:
            depths[-1] = count(shapes, f"{block}1.transformer_blocks.{{}}.attn2.to_k.weight")
            width = shapes[f"{block}1.transformer_blocks.0.attn2.to_k.weight"][1]
            linear = len(shapes[f"{block}1.proj_in.weight"]) == 2
        number += 1
    channels = [level[0] for level in levels]
    downs = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": downs,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(downs)],
        "cross_attention_dim": width,
        "transformer_layers_per_block": 1 if max(depths) == 1 else [depth or 1 for depth in depths],
        "attention_head_dim": [max(1, channel // 64) for channel in channels] if linear else 8,  # number of heads
        "use_linear_projection": linear,
    }


def vae_config(shapes: Shapes, quant: bool = True) -> dict[str, Any]:
    """Read the autoencoder's configuration; its scaling factor is Stable Diffusion's. quant: it has a quant_conv."""
    levels = count(shapes, f"{VAE}encoder.down.{{}}.block.0.conv1.weight")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, f"{VAE}encoder.down.0.block.{{}}.conv1.weight"),
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "use_quant_conv": quant,
        "use_post_quant_conv": quant,
        "scaling_factor": 0.18215,
    }


def clip_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Read the configuration of a text encoder stored as OpenAI's, under ….transformer.text_model."""
    words, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
    layers = count(shapes, f"{prefix}encoder.layers.{{}}.mlp.fc1.weight")
    length = shapes[f"{prefix}embeddings.position_embedding.weight"][0]
    inner = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    return _text_config(words, width, layers, length, inner) | {"hidden_act": "quick_gelu", "pad_token_id": words - 1}


def open_clip_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Read the configuration of a text encoder stored as OpenCLIP's, with all of its layers."""
    words, width = shapes[f"{prefix}token_embedding.weight"]
    layers = count(shapes, f"{prefix}transformer.resblocks.{{}}.mlp.c_fc.weight")
    length = shapes[f"{prefix}positional_embedding"][0]
    inner = shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0]
    return _text_config(words, width, layers, length, inner) | {"hidden_act": "gelu", "pad_token_id": 0}


def _text_config(words: int, width: int, layers: int, length: int, inner: int) -> dict[str, Any]:
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": length,
        "projection_dim": width,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def tokenizer_config(text_encoder: Config, pad: str) -> dict[str, Any]:
    """Return a text encoder's required tokenizer: vocabulary size, length, and padding token ("": its own)."""
    length = text_encoder["max_position_embeddings"]
    return {"vocab_size": text_encoder["vocab_size"], "model_max_length": length, "pad_token": pad}


def prediction(shapes: Shapes, meta: Mapping[str, str], default: str) -> str:
    """Return what the denoiser predicts, from the header or a marker tensor, else `default`."""
    stated = meta.get("modelspec.prediction_type", "")
    if stated in ("v", "v_prediction") or "v_pred" in shapes:
        return "v_prediction"
    return "epsilon" if stated else default


def schedule_config(prediction: str) -> dict[str, Any]:
    """Return the noise schedule of Stable Diffusion and SDXL."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    return {**betas, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "prediction_type": prediction}


def size_config(configs: Configs, meta: Mapping[str, str], default: int, denoiser: str = "unet") -> None:
    """Set the image size in the configurations: the header's (modelspec.resolution), else `default` latents."""
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    pixels = meta.get("modelspec.resolution", "").partition("x")[0]
    configs[denoiser]["sample_size"] = int(pixels) // factor if pixels.isdecimal() else default
    configs["vae"]["sample_size"] = configs[denoiser]["sample_size"] * factor


def check_latents(shapes: Shapes) -> None:
    """Raise `BadModel` for a denoiser with more inputs than latents: inpainting, depth, edits by instruction."""
    channels, latents = shapes[f"{UNET}input_blocks.0.0.weight"][1], shapes.get(f"{UNET}out.2.weight", [0])[0]
    if channels != latents:
        raise BadModel(f"its denoiser reads {channels} channels and writes {latents}: no text-to-image model")


# --- keys from names ---
def part_at(key: str, homes: Mapping[str, str]) -> str:
    """Return the part that a key belongs to by its prefix; "" for a key of no part."""
    return next((part for home, part in homes.items() if key.startswith(home)), "")


RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
VAE_PARTS = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\bgroup_norm\.", "norm."),
    (r"\bto_out\.0\.", "proj_out."),
    (r"\bto_([qkv])\.", r"\1."),
    (r"\bconv_norm_out\.", "norm_out."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
)
OPEN_CLIP = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def _begin(name: str, table: Mapping[str, str]) -> str:
    """Convert the beginning of a name to the original layout."""
    return next((new + name.removeprefix(old) for old, new in table.items() if name.startswith(old)), name)


def unet_key(name: str, config: Config) -> Stored:
    """Return where a weight of the UNet is stored; name: as in its state dict. Source: diffusers' conversion."""
    if (end := _begin(name, UNET_ENDS)) != name:
        return Stored(UNET + end)
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        raise BadModel(f"the original layout has no place for the UNet's {name}")
    way, block, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first = block * (config["layers_per_block"] + 1)
    if way == "mid":
        return Stored(f"{UNET}middle_block.{1 if kind == 'attentions' else 2 * number}.{_begin(rest, RESNET)}")
    if kind == "downsamplers":
        stage, rest = f"input_blocks.{first + config['layers_per_block'] + 1}.0", rest.replace("conv.", "op.")
    elif kind == "upsamplers":  # behind the attention, if the block has one
        behind = 2 if "CrossAttn" in config["up_block_types"][block] else 1
        stage = f"output_blocks.{first + config['layers_per_block']}.{behind}"
    else:
        row = f"input_blocks.{1 + first + number}" if way == "down" else f"output_blocks.{first + number}"
        stage = f"{row}.{1 if kind == 'attentions' else 0}"
    return Stored(f"{UNET}{stage}.{_begin(rest, RESNET) if kind == 'resnets' else rest}")


def vae_key(name: str, config: Config) -> Stored:
    """Return where a weight of the autoencoder is stored; its attention is stored as 1 × 1 convolutions."""
    last = len(config["block_out_channels"]) - 1
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", key)
    for ours, original in VAE_PARTS:
        key = re.sub(ours, original, key)
    return Stored(VAE + key, "matrix" if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else "whole")


def clip_key(name: str, prefix: str) -> Stored:
    """Return where a weight of OpenAI's text encoder is stored; name: as in its state dict."""
    return Stored(prefix + name.removeprefix("text_model."))


def open_clip_key(name: str, prefix: str) -> Stored:
    """Return where a weight of OpenCLIP's text encoder is stored; queries, keys and values are in one tensor."""
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Stored(f"{prefix}text_projection", "transposed")
    if name in OPEN_CLIP_ENDS:
        return Stored(prefix + OPEN_CLIP_ENDS[name])
    number, _, rest = name.removeprefix("encoder.layers.").partition(".")
    home = f"{prefix}transformer.resblocks.{number}."
    if match := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
        view: dict[str, View] = {"q": "q", "k": "k", "v": "v"}
        return Stored(f"{home}attn.in_proj_{match[2]}", view[match[1]])
    return Stored(home + _begin(rest, OPEN_CLIP))
