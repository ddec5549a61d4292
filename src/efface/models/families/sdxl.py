"""SDXL: two CLIP text encoders; the denoiser also reads a pooled vector and the image's size.

Podell et al. 2023, https://arxiv.org/abs/2307.01952.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from efface.context import Context
from efface.errors import BadModel
from efface.models import text
from efface.models.files import original_layout as layout
from efface.models.files.original_layout import UNET, VAE, Configs, Shapes, Stored
from efface.models.unet_family import UNetFamily

CLIP = "conditioner.embedders.0.transformer.text_model."  # OpenAI's text encoder
OPEN_CLIP = "conditioner.embedders.1.model."  # OpenCLIP's, with its projection
HOMES = {UNET: "unet", VAE: "vae", CLIP: "text_encoder", OPEN_CLIP: "text_encoder_2"}
SIZES = 6  # numbers about the image's size that the denoiser reads, each as a sinusoidal embedding
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


@dataclass(frozen=True, eq=False)
class SDXL(UNetFamily):
    """View an SDXL base pipeline; images have the model's own size, without cropping."""

    TITLE: ClassVar[str] = "SDXL"
    PARTS: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2", "vae")
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {  # esd_sdxl.py: without embeddings, first and last layer
        **UNetFamily.SETS,
        "u-linear": lambda name: UNetFamily.SETS["u-linear"](name) and "emb" not in name and "block" in name,
    }

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline has two text encoders and a UNet that also reads a pooled vector and sizes."""
        unet: Any = getattr(pipe, "unet", None)
        both = getattr(pipe, "text_encoder_2", None) is not None
        return both and hasattr(unet, "config") and unet.config.get("addition_embed_type") == "text_time"

    # --- single files in the original layout ---
    @classmethod
    def reads(cls, shapes: Shapes) -> bool:
        """Return whether a checkpoint of these tensors is of this family."""
        return f"{UNET}input_blocks.0.0.weight" in shapes and any(name.startswith("conditioner.") for name in shapes)

    @classmethod
    def configs(cls, shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> Configs:
        """Read the configurations of a pipeline's parts; by default the denoiser predicts eps."""
        if not any(name.startswith(CLIP) for name in shapes):
            raise BadModel("it is not SDXL base: the first of two text encoders is missing (the refiner has one only)")
        layout.check_latents(shapes)
        first, second = layout.clip_config(shapes, CLIP), layout.open_clip_config(shapes, OPEN_CLIP)
        second["projection_dim"] = shapes[f"{OPEN_CLIP}text_projection"][1]
        kind = prediction or layout.prediction(shapes, meta, "epsilon")
        schedule = {"timestep_spacing": "leading", "rescale_betas_zero_snr": "ztsnr" in shapes}
        found = {
            "model_index": INDEX,
            "unet": {**layout.unet_config(shapes), **_added(shapes, second["projection_dim"])},
            "vae": {**layout.vae_config(shapes), "scaling_factor": 0.13025, "force_upcast": True},
            "text_encoder": first,
            "text_encoder_2": second,
            "tokenizer": layout.tokenizer_config(first, "<|endoftext|>"),
            "tokenizer_2": layout.tokenizer_config(second, "!"),
            "scheduler": {**layout.schedule_config(kind), **schedule},
        }
        layout.size_config(found, meta, 128)
        return found

    @classmethod
    def original_key(cls, name: str, configs: Configs) -> Stored:
        """Return where a weight is stored; name: "unet.….weight"."""
        part, _, rest = name.partition(".")
        if part in ("unet", "vae"):
            return (layout.unet_key if part == "unet" else layout.vae_key)(rest, configs[part])
        return layout.clip_key(rest, CLIP) if part == "text_encoder" else layout.open_clip_key(rest, OPEN_CLIP)

    @classmethod
    def part_of(cls, key: str, configs: Configs) -> str:
        """Return the part a stored tensor is a weight of, "" for one of no part."""
        return layout.part_at(key, HOMES)

    # --- text and noise ---
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts: penultimate hidden states of both encoders, concatenated, and the second's pooled vector."""
        for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2):
            text.warn_if_cut(tokenizer, prompts, stacklevel=3)
        options: dict[str, Any] = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        device = self.pipe.text_encoder.device
        tokens, _, pooled, _ = self.pipe.encode_prompt(list(prompts), device=device, **options)
        return Context(tokens, pooled).to(self.denoiser.dtype)

    def null(self) -> Context:
        """Return the unconditional context: zeros if the pipeline's configuration says so, else the empty prompt's."""
        empty = self.encode([""])
        return empty.map(torch.zeros_like) if self.pipe.config.force_zeros_for_empty_prompt else empty

    def prepare(self) -> None:
        """Bring an autoencoder that overflows in half precision, as SDXL base's does, to fp32."""
        vae = self.pipe.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()

    def text_encoders(self) -> tuple[Any, ...]:
        """Return both text encoders, which read the same token ids up to the end token."""
        return (self.pipe.text_encoder, self.pipe.text_encoder_2)

    def tokenizers(self) -> tuple[Any, ...]:
        """Return both tokenizers."""
        return (self.pipe.tokenizer, self.pipe.tokenizer_2)

    def pooled_weights(self) -> list[str]:
        """Return the name of the weight that reads the pooled vector, and sizes after it."""
        return ["unet.add_embedding.linear_1.weight"]

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens; the two tokenizers differ in the padding only."""
        return (text.tokens(self.pipe.tokenizer, prompt),)

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the UNet's keyword arguments: tokens, the pooled vector, and sizes (original, crop, target)."""
        size = self.image_size
        times = torch.tensor([[size, size, 0, 0, size, size]], dtype=c.tokens.dtype, device=c.device)
        added = {"text_embeds": c.pooled, "time_ids": times.expand(count, -1)}
        return {"encoder_hidden_states": c.tokens, "added_cond_kwargs": added}

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the UNet's keyword arguments."""
        return Context(arguments["encoder_hidden_states"], arguments["added_cond_kwargs"]["text_embeds"])


def _added(shapes: Shapes, pooled: int) -> dict[str, Any]:
    """Return the denoiser's other inputs: the pooled vector and the sizes."""
    width = shapes[f"{UNET}label_emb.0.0.weight"][1]
    sizes = {"addition_time_embed_dim": (width - pooled) // SIZES, "projection_class_embeddings_input_dim": width}
    return {"addition_embed_type": "text_time", **sizes}
