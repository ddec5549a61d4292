"""Write a diffusers pipeline in the original key layout of Stable Diffusion and SDXL: the inverse of reading it."""

import re

import torch
from torch import Tensor

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
OPEN_CLIP = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def _replace(name: str, table: dict[str, str]) -> str:
    for ours, original in table.items():
        if name.startswith(ours):
            return original + name.removeprefix(ours)
    return name


def unet_key(name: str, layers: int) -> str:
    """Return the original name of a UNet weight, for `layers` residual blocks a level."""
    if (renamed := _replace(name, UNET_ENDS)) != name:
        return renamed
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        way, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if way == "down":
            place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else number)
            slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
            rest = rest.removeprefix("conv.") if kind == "downsamplers" else rest
            return f"input_blocks.{place}.{slot}." + (_replace(rest, RESNET) if kind == "resnets" else rest)
        place = block * (layers + 1) + (layers if kind == "upsamplers" else number)
        slot = {"resnets": "0", "attentions": "1", "upsamplers": "UP"}[kind]
        return f"output_blocks.{place}.{slot}." + (_replace(rest, RESNET) if kind == "resnets" else rest)
    match = re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name)
    assert match, name
    if match[1] == "attentions":
        return f"middle_block.1.{match[3]}"
    return f"middle_block.{2 * int(match[2])}.{_replace(match[3], RESNET)}"


def vae_key(name: str, levels: int) -> str:
    """Return the original name of an autoencoder weight."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_norm_out", "norm_out")
    name = name.replace("conv_shortcut", "nin_shortcut").replace("group_norm", "norm").replace("to_out.0", "proj_out")
    return re.sub(r"\bto_([qkv])\b", r"\1", name)


def clip_tensors(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return OpenAI's text encoder as Stable Diffusion 1.x and SDXL have it, with the positions of old versions."""
    found = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    return found | {f"{prefix}text_model.embeddings.position_ids": torch.arange(16)[None]}


def open_clip_tensors(state: dict[str, Tensor], prefix: str, skipped: bool) -> dict[str, Tensor]:
    """Return a text encoder in OpenCLIP's layout.

    skipped: with one more layer and a projection, as Stable Diffusion 2.x has, which leaves them out.
    """
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    ends = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    found = {original: state[ours] for ours, original in ends.items()}
    count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    for i in range(count + skipped):
        source = f"encoder.layers.{min(i, count - 1)}."
        target = f"transformer.resblocks.{i}."
        for name, tensor in state.items():
            if name.startswith(source) and "_proj." not in name.replace("out_proj.", ""):
                found[target + _replace(name.removeprefix(source), OPEN_CLIP)] = tensor
        for kind in ("weight", "bias"):
            parts = [state[f"{source}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            found[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
    width = found["ln_final.weight"].shape[0]
    found["text_projection"] = torch.eye(width) if skipped else state["text_projection.weight"].T.contiguous()
    found["logit_scale"] = torch.tensor(4.6)
    return {prefix + name: tensor for name, tensor in found.items()}


def text_tensors(pipe) -> dict[str, Tensor]:
    """Return the text encoder or encoders: OpenAI's for 1.x, OpenCLIP's for 2.x, both for SDXL."""
    state = pipe.text_encoder.state_dict()
    if getattr(pipe, "text_encoder_2", None) is not None:
        second = open_clip_tensors(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.", skipped=False)
        return clip_tensors(state, "conditioner.embedders.0.transformer.") | second
    if pipe.unet.config.use_linear_projection:
        return open_clip_tensors(state, "cond_stage_model.model.", skipped=True)
    return clip_tensors(state, "cond_stage_model.transformer.")


def to_original(pipe) -> dict[str, Tensor]:
    """Return all tensors of a Stable Diffusion or SDXL pipeline under their original names."""
    layers = pipe.unet.config.layers_per_block
    levels = len(pipe.vae.config.block_out_channels)
    unet = {unet_key(name, layers): tensor for name, tensor in pipe.unet.state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, tensor in unet.items():
        if ".UP." in name:  # behind the attention, if the block has one
            block = name.split(".UP.")[0]
            slot = 2 if any(key.startswith(f"{block}.1.") for key in unet) else 1
            name = name.replace(".UP.", f".{slot}.")
        found[f"model.diffusion_model.{name}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        key = vae_key(name, levels)
        attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
        found[f"first_stage_model.{key}"] = tensor[:, :, None, None] if attention else tensor
    return found | text_tensors(pipe)
