"""Files of SDXL base in the original layout."""

from collections.abc import Mapping
from typing import Any

from efface.errors import BadModel
from efface.models.files import original_layout as layout
from efface.models.files.original_layout import UNET, VAE, Shapes, Stored

CLIP = "conditioner.embedders.0.transformer.text_model."  # OpenAI's text encoder
OPEN_CLIP = "conditioner.embedders.1.model."  # OpenCLIP's, with its projection
HOMES = {UNET: "unet", VAE: "vae", CLIP: "text_encoder", OPEN_CLIP: "text_encoder_2"}
SIZES = 6  # numbers about the image's size that the denoiser reads, each as a sinusoidal embedding


def reads(shapes: Shapes) -> bool:
    """Say whether a checkpoint of these tensors is of this family."""
    return f"{UNET}input_blocks.0.0.weight" in shapes and any(name.startswith("conditioner.") for name in shapes)


def configs(shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> dict[str, dict[str, Any]]:
    """Read the configurations of a pipeline's parts, and its model_index.

    prediction: what the denoiser predicts; by default what the header says (modelspec), else epsilon.
    Raises `BadModel`, and `KeyError` for a tensor that is not there.
    """
    if not any(name.startswith(CLIP) for name in shapes):
        raise BadModel("it is not SDXL base: the first of two text encoders is missing (the refiner has one only)")
    layout.check_latents(shapes)
    first, second = layout.clip_config(shapes, CLIP), layout.open_clip_config(shapes, OPEN_CLIP)
    second["projection_dim"] = shapes[f"{OPEN_CLIP}text_projection"][1]
    added = shapes[f"{UNET}label_emb.0.0.weight"][1]
    beside = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (added - second["projection_dim"]) // SIZES,
        "projection_class_embeddings_input_dim": added,
    }
    kind = prediction or layout.prediction(shapes, meta, "epsilon")
    found = {
        "model_index": INDEX,
        "unet": {**layout.unet_config(shapes), **beside},
        "vae": {**layout.vae_config(shapes), "scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": layout.tokenizer_config(first, "<|endoftext|>"),
        "tokenizer_2": layout.tokenizer_config(second, "!"),
        "scheduler": {
            **layout.schedule_config(kind),
            "timestep_spacing": "leading",
            "rescale_betas_zero_snr": "ztsnr" in shapes,
        },
    }
    layout.size_config(found, meta, 128)
    return found


INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "force_zeros_for_empty_prompt": True,
}


def original_key(name: str, configs: Mapping[str, dict[str, Any]]) -> Stored:
    """Return where a weight is stored; name: "unet.….weight"."""
    part, _, rest = name.partition(".")
    if part in ("unet", "vae"):
        return (layout.unet_key if part == "unet" else layout.vae_key)(rest, configs[part])
    return layout.clip_key(rest, CLIP) if part == "text_encoder" else layout.open_clip_key(rest, OPEN_CLIP)


def part_of(key: str, configs: Mapping[str, dict[str, Any]]) -> str:
    """Return the part a stored tensor is a weight of; "" for averages and schedules."""
    return layout.part_at(key, HOMES)
