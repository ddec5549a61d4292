"""The original layout of Stable Diffusion 3's checkpoints (Stability AI): its transformer, and text encoders beside it.

Configurations are derived from the tensors' shapes; what shapes cannot tell is as in Stable Diffusion 3: heads of 64
channels. Source of the keys: the names of Stability AI's reference code, as diffusers' conversion has them too.
"""

import re
from collections.abc import Mapping
from typing import Any

from efface.errors import BadModel
from efface.models.files import original_layout as layout
from efface.models.files.original_layout import UNET, Config, Shapes, Stored
from efface.models.files.tensors import View

HEAD = 64  # channels of an attention head
ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "context_embedder.": "context_embedder.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
}
BLOCK = {  # of one block: the image's side is x_block, the text's is context_block
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "attn.norm_q.": "x_block.attn.ln_q.",
    "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "attn2.norm_q.": "x_block.attn2.ln_q.",
    "attn2.norm_k.": "x_block.attn2.ln_k.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
QKV: tuple[tuple[str, str], ...] = (  # queries, keys and values are thirds of one tensor
    (r"attn\.to_([qkv])\.", "x_block.attn.qkv."),
    (r"attn\.add_([qkv])_proj\.", "context_block.attn.qkv."),
    (r"attn2\.to_([qkv])\.", "x_block.attn2.qkv."),
)


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """Read the transformer's configuration; raises `KeyError` for a tensor that is not there."""
    width, channels, patch, _ = shapes[f"{UNET}x_embedder.proj.weight"]
    layers = layout.count(shapes, f"{UNET}joint_blocks.{{}}.x_block.attn.qkv.weight")
    blocks = range(layers)
    projection, joint = shapes[f"{UNET}context_embedder.weight"]
    return {
        "_class_name": "SD3Transformer2DModel",
        "in_channels": channels,
        "out_channels": shapes[f"{UNET}final_layer.linear.weight"][0] // patch**2,
        "patch_size": patch,
        "num_layers": layers,
        "attention_head_dim": HEAD,
        "num_attention_heads": width // HEAD,
        "caption_projection_dim": projection,
        "joint_attention_dim": joint,
        "pooled_projection_dim": shapes[f"{UNET}y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": round(shapes[f"{UNET}pos_embed"][1] ** 0.5),
        "dual_attention_layers": [i for i in blocks if f"{UNET}joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes],
        "qk_norm": "rms_norm" if f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def transformer_key(name: str, config: Config) -> Stored:
    """Return where a weight of the transformer is stored; name: as in its state dict.

    The last modulations, which only scale and shift, are stored with shift before scale.
    """
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    if match is None:
        view: View = "swapped" if name.startswith("norm_out.") else "whole"
        return Stored(f"{UNET}{_replaced(name, ENDS)}", view)
    number, rest = match[1], match[2]
    home = f"{UNET}joint_blocks.{number}."
    thirds: dict[str, View] = {"q": "q", "k": "k", "v": "v"}
    for ours, original in QKV:
        if found := re.match(ours, rest):
            return Stored(home + original + rest[found.end() :], thirds[found[1]])
    last = int(number) == config["num_layers"] - 1 and rest.startswith("norm1_context.")
    return Stored(home + _replaced(rest, BLOCK), "swapped" if last else "whole")


def t5_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Read the configuration of a T5 encoder of version 1.1."""
    words, width = shapes[f"{prefix}shared.weight"]
    first = f"{prefix}encoder.block.0.layer."
    buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}1.DenseReluDense.wo.weight"][1],
        "num_layers": layout.count(shapes, f"{prefix}encoder.block.{{}}.layer.0.SelfAttention.q.weight"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def projected_clip_config(shapes: Shapes, prefix: str, act: str) -> dict[str, Any]:
    """Read the configuration of a CLIP text encoder with its projection; prefix: ends with "transformer."."""
    found = layout.clip_config(shapes, f"{prefix}text_model.")
    return found | {"hidden_act": act, "projection_dim": shapes[f"{prefix}text_projection.weight"][0]}


def projected_clip_key(name: str, prefix: str) -> Stored:
    """Return where a weight of a CLIP text encoder with its projection is stored."""
    if name == "text_projection.weight":
        return Stored(prefix + name)
    return layout.clip_key(name, f"{prefix}text_model.")


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise BadModel(f"the original layout has no place for the transformer's {name}")
