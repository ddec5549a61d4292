"""Names and configurations at full size, without values: against diffusers' conversion and published configurations."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from efface.models.families.sd import StableDiffusion
from efface.models.families.sdxl import SDXL
from efface.models.files.original_layout import UNET, VAE

PLAIN = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
KINDS = {  # the published unet/config.json, as far as it says more than the defaults
    "1.x": {**PLAIN, "cross_attention_dim": 768, "attention_head_dim": 8},
    "2.x": {
        **PLAIN, "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "xl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
VAE_CONFIG = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TEXT2 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
TEXT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def _states(kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of a published model's parts, without values."""
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(KINDS[kind]),
            "vae": AutoencoderKL.from_config(VAE_CONFIG),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**(TEXT2 if kind == "2.x" else TEXT))),
        }
        if kind == "xl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_G, projection_dim=1280))
    return {name: module.state_dict() for name, module in parts.items()}


def _stored(kind: str, states: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the keys and shapes of a checkpoint, as the names say."""
    hint = {"hidden_act": "gelu" if kind == "2.x" else "quick_gelu"}
    configs = {"unet": KINDS[kind], "vae": VAE_CONFIG, "text_encoder": hint}
    if kind != "xl":  # its defaults
        ups = ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
        configs["unet"] = {**KINDS[kind], "up_block_types": ups}
    found: dict[str, torch.Tensor] = {}
    for part, state in states.items():
        for name, value in state.items():
            key, view = (SDXL if kind == "xl" else StableDiffusion).original_key(f"{part}.{name}", configs)
            assert key not in found or view in "qkv", key
            if view in "qkv":
                value = torch.empty(3 * len(value), *value.shape[1:], device="meta")
            found[key] = value[:, :, None, None] if view == "matrix" else value.T if view == "transposed" else value
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_configurations_at_full_size(kind: str):
    states = _states(kind)
    stored = _stored(kind, states)
    unet = convert_ldm_unet_checkpoint(
        {key: value for key, value in stored.items() if key.startswith(UNET)}, KINDS[kind]
    )
    assert unet.keys() == states["unet"].keys()
    assert all(unet[name] is states["unet"][name] for name in unet)
    vae = convert_ldm_vae_checkpoint({key: value for key, value in stored.items() if key.startswith(VAE)}, VAE_CONFIG)
    assert vae.keys() == states["vae"].keys()
    assert all(vae[name].shape == value.shape for name, value in states["vae"].items())

    shapes = {key: list(value.shape) for key, value in stored.items()}
    if kind == "2.x":  # the layer that is not used
        last = {key.replace(".22.", ".23."): shape for key, shape in shapes.items() if ".resblocks.22." in key}
        shapes |= last
    family = SDXL if kind == "xl" else StableDiffusion
    assert [one.reads(shapes) for one in (StableDiffusion, SDXL)] == [kind != "xl", kind == "xl"]
    configs = family.configs(shapes, {})
    assert {name: configs["unet"].get(name) for name in KINDS[kind]} == KINDS[kind]
    assert {name: configs["vae"][name] for name in VAE_CONFIG} == VAE_CONFIG
    text = TEXT2 if kind == "2.x" else TEXT
    assert {name: configs["text_encoder"][name] for name in text} == text
    if kind == "xl":
        assert {name: configs["text_encoder_2"][name] for name in TEXT_G} == TEXT_G
        assert configs["text_encoder_2"]["projection_dim"] == 1280


def test_what_a_closed_form_edit_changes_in_sdxl():
    names = [name for name in _states("xl")["unet"] if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))]
    assert len(names) == 140
    keys = {name: SDXL.original_key(f"unet.{name}", {"unet": KINDS["xl"]}).key for name in names}
    first = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert keys[first] == f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert len({key.partition(".transformer_blocks.")[0] for key in keys.values()}) == 11
