"""Files of Stable Diffusion 1.x and 2.x in the original layout."""

from collections.abc import Mapping
from typing import Any

from efface.errors import BadModel
from efface.models.files import original_layout as layout
from efface.models.files.original_layout import UNET, VAE, Shapes, Stored

CLIP = "cond_stage_model.transformer.text_model."  # 1.x: OpenAI's text encoder
OPEN_CLIP = "cond_stage_model.model."  # 2.x: OpenCLIP's, read before its last layer
HOMES = {UNET: "unet", VAE: "vae", CLIP: "text_encoder", OPEN_CLIP: "text_encoder"}


def reads(shapes: Shapes) -> bool:
    """Say whether a checkpoint of these tensors is of this family."""
    return f"{UNET}input_blocks.0.0.weight" in shapes and not any(name.startswith("conditioner.") for name in shapes)


def configs(shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> dict[str, dict[str, Any]]:
    """Read the configurations of a pipeline's parts, and its model_index.

    prediction: what the denoiser predicts; by default what the header says (modelspec), else epsilon for 1.x and
    v_prediction for 2.x. Raises `BadModel`, and `KeyError` for a tensor that is not there.
    """
    if not any(name.startswith((CLIP, OPEN_CLIP)) for name in shapes):
        raise BadModel("it has no text encoder: give a full checkpoint, not a pruned one")
    layout.check_latents(shapes)
    second = f"{OPEN_CLIP}token_embedding.weight" in shapes
    kind = prediction or layout.prediction(shapes, meta, "v_prediction" if second else "epsilon")
    text = layout.open_clip_config(shapes, OPEN_CLIP) if second else layout.clip_config(shapes, CLIP)
    text["num_hidden_layers"] -= second
    scheduler = "PNDMScheduler" if kind == "epsilon" else "DDIMScheduler"
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    found = {
        "model_index": index,
        "unet": layout.unet_config(shapes),
        "vae": layout.vae_config(shapes),
        "text_encoder": text,
        "tokenizer": layout.tokenizer_config(text, "!" if second else ""),
        "scheduler": {**layout.schedule_config(kind), "skip_prk_steps": True},
    }
    layout.size_config(found, meta, 96 if kind == "v_prediction" else 64)
    return found


def original_key(name: str, configs: Mapping[str, dict[str, Any]]) -> Stored:
    """Return where a weight is stored; name: "unet.….weight"."""
    part, _, rest = name.partition(".")
    if part == "unet":
        return layout.unet_key(rest, configs["unet"])
    if part == "vae":
        return layout.vae_key(rest, configs["vae"])
    second = configs["text_encoder"]["hidden_act"] == "gelu"
    return layout.open_clip_key(rest, OPEN_CLIP) if second else layout.clip_key(rest, CLIP)


def part_of(key: str, configs: Mapping[str, dict[str, Any]]) -> str:
    """Return the part a stored tensor is a weight of; "" for averages, schedules, the layer that 2.x skips."""
    skipped = f"{OPEN_CLIP}transformer.resblocks.{configs['text_encoder']['num_hidden_layers']}."
    return "" if key.startswith((skipped, f"{OPEN_CLIP}text_projection")) else layout.part_at(key, HOMES)
