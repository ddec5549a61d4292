"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts eps or v."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from efface.context import Context
from efface.errors import BadModel
from efface.models import text
from efface.models.files import original_layout as layout
from efface.models.files.original_layout import UNET, VAE, Configs, Shapes, Stored
from efface.models.unet_family import UNetFamily

CLIP = "cond_stage_model.transformer.text_model."  # 1.x: OpenAI's text encoder
OPEN_CLIP = "cond_stage_model.model."  # 2.x: OpenCLIP's, read before its last layer
HOMES = {UNET: "unet", VAE: "vae", CLIP: "text_encoder", OPEN_CLIP: "text_encoder"}
XLAYER = ("unet.up_blocks.2.attentions.0.", "unet.up_blocks.2.attentions.2.")  # output_blocks 6 and 8
SELFLAYER = ("unet.down_blocks.1.attentions.0.", "unet.down_blocks.2.attentions.0.")  # input_blocks 4 and 7
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


@dataclass(frozen=True, eq=False)
class StableDiffusion(UNetFamily):
    """View a Stable Diffusion 1.x or 2.x pipeline."""

    TITLE: ClassVar[str] = "Stable Diffusion 1.x and 2.x"
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {  # the last two: of ESD's first code
        **UNetFamily.SETS,
        "xlayer": lambda name: ".attn2." in name and name.startswith(XLAYER),
        "selflayer": lambda name: ".attn1." in name and name.startswith(SELFLAYER),
    }

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline has one text encoder and a UNet whose only condition is its tokens."""
        unet: Any = getattr(pipe, "unet", None)
        one = getattr(pipe, "text_encoder_2", None) is None
        return one and hasattr(unet, "attn_processors") and unet.config.get("addition_embed_type") is None

    # --- single files in the original layout ---
    @classmethod
    def reads(cls, shapes: Shapes) -> bool:
        """Return whether a checkpoint of these tensors is of this family."""
        xl = any(name.startswith("conditioner.") for name in shapes)
        return f"{UNET}input_blocks.0.0.weight" in shapes and not xl

    @classmethod
    def configs(cls, shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> Configs:
        """Read the configurations of a pipeline's parts; by default 1.x predicts eps and 2.x v."""
        if not any(name.startswith((CLIP, OPEN_CLIP)) for name in shapes):
            raise BadModel("it has no text encoder: give a full checkpoint, not a pruned one")
        layout.check_latents(shapes)
        second = f"{OPEN_CLIP}token_embedding.weight" in shapes
        kind = prediction or layout.prediction(shapes, meta, "v_prediction" if second else "epsilon")
        encoder = layout.open_clip_config(shapes, OPEN_CLIP) if second else layout.clip_config(shapes, CLIP)
        encoder["num_hidden_layers"] -= int(second)
        scheduler = "PNDMScheduler" if kind == "epsilon" else "DDIMScheduler"
        found = {
            "model_index": {**INDEX, "scheduler": ["diffusers", scheduler]},
            "unet": layout.unet_config(shapes),
            "vae": layout.vae_config(shapes),
            "text_encoder": encoder,
            "tokenizer": layout.tokenizer_config(encoder, "!" if second else ""),
            "scheduler": {**layout.schedule_config(kind), "skip_prk_steps": True},
        }
        layout.size_config(found, meta, 96 if kind == "v_prediction" else 64)
        return found

    @classmethod
    def original_key(cls, name: str, configs: Configs) -> Stored:
        """Return where a weight is stored; name: "unet.….weight"."""
        part, _, rest = name.partition(".")
        if part == "unet":
            return layout.unet_key(rest, configs["unet"])
        if part == "vae":
            return layout.vae_key(rest, configs["vae"])
        second = configs["text_encoder"]["hidden_act"] == "gelu"
        return layout.open_clip_key(rest, OPEN_CLIP) if second else layout.clip_key(rest, CLIP)

    @classmethod
    def part_of(cls, key: str, configs: Configs) -> str:
        """Return the part a stored tensor is a weight of, "" for one of no part."""
        return layout.part_at(key, HOMES)

    @classmethod
    def unread(cls, key: str, configs: Configs) -> bool:
        """Return whether a stored tensor is of the text encoder's layer and projection that 2.x skips."""
        skipped = f"{OPEN_CLIP}transformer.resblocks.{configs['text_encoder']['num_hidden_layers']}."
        return key.startswith(skipped) or key == f"{OPEN_CLIP}text_projection"

    # --- text and noise ---
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts to the text encoder's last hidden states."""
        return Context(text.encode(self.pipe.tokenizer, self.pipe.text_encoder, prompts).to(self.denoiser.dtype))

    def text_encoders(self) -> tuple[Any, ...]:
        """Return the text encoder."""
        return (self.pipe.text_encoder,)

    def tokenizers(self) -> tuple[Any, ...]:
        """Return the tokenizer."""
        return (self.pipe.tokenizer,)

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens."""
        return (text.tokens(self.pipe.tokenizer, prompt),)
