"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5; a transformer that predicts a flow.

Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from efface.context import Context
from efface.errors import BadModel
from efface.models import text
from efface.models.files import original_layout as layout
from efface.models.files import original_transformer as original
from efface.models.files.original_layout import UNET, VAE, Configs, Shapes, Stored
from efface.models.transformer_family import TransformerFamily
from efface.util.ranges import short

CLIP_L, CLIP_G = "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."
T5 = "text_encoders.t5xxl.transformer."
HOMES = {UNET: "transformer", VAE: "vae", CLIP_L: "text_encoder", CLIP_G: "text_encoder_2", T5: "text_encoder_3"}
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
LENGTH = 256  # tokens of T5, the pipeline's default
LARGEST = 1024  # of a side of the latents: 8192 pixels


@dataclass(frozen=True, eq=False)
class StableDiffusion3(TransformerFamily):
    """View a Stable Diffusion 3 or 3.5 pipeline; without T5, its tokens are zeros, as in the pipeline."""

    TITLE: ClassVar[str] = "Stable Diffusion 3 and 3.5"
    GUIDANCE: ClassVar[float] = 7.0  # the pipeline's default
    PARTS: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline has the transformer of SD3, which projects its captions."""
        config: Any = getattr(getattr(pipe, "transformer", None), "config", {})
        return (
            "caption_projection_dim" in config and "pooled_projection_dim" in config and "pos_embed_max_size" in config
        )

    # --- single files in the original layout ---
    @classmethod
    def reads(cls, shapes: Shapes) -> bool:
        """Return whether a checkpoint of these tensors is of this family."""
        return f"{UNET}joint_blocks.0.context_block.attn.qkv.weight" in shapes

    @classmethod
    def configs(cls, shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> Configs:
        """Read the configurations of a pipeline's parts; T5 may be missing, the CLIPs may not."""
        if not any(name.startswith(CLIP_L) for name in shapes):
            raise BadModel(
                "it has no text encoders: give a checkpoint that includes them, or the diffusers folder of the model"
            )
        first, second = (
            original.projected_clip_config(shapes, prefix, act)
            for prefix, act in ((CLIP_L, "quick_gelu"), (CLIP_G, "gelu"))
        )
        found = {
            "model_index": dict(INDEX),
            "transformer": original.transformer_config(shapes),
            "vae": {**layout.vae_config(shapes, quant=False), "scaling_factor": 1.5305, "shift_factor": 0.0609},
            "text_encoder": first,
            "text_encoder_2": second,
            "tokenizer": layout.tokenizer_config(first, "<|endoftext|>"),
            "tokenizer_2": layout.tokenizer_config(second, "!"),
            "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
        }
        if any(name.startswith(T5) for name in shapes):
            found["text_encoder_3"] = original.t5_config(shapes, T5)
            words = found["text_encoder_3"]["vocab_size"]
            found["tokenizer_3"] = {"kind": "t5", "vocab_size": words, "model_max_length": 512}
        else:
            found["model_index"] |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        layout.size_config(found, meta, 128, "transformer")
        return found

    @classmethod
    def original_key(cls, name: str, configs: Configs) -> Stored:
        """Return where a weight is stored; name: "transformer.….weight"."""
        part, _, rest = name.partition(".")
        if part == "transformer":
            return original.transformer_key(rest, configs[part])
        if part == "vae":
            return layout.vae_key(rest, configs[part])
        if part == "text_encoder_3":
            return Stored(T5 + rest)
        return original.projected_clip_key(rest, CLIP_L if part == "text_encoder" else CLIP_G)

    @classmethod
    def part_of(cls, key: str, configs: Configs) -> str:
        """Return the part a stored tensor is a weight of, "" for one of no part."""
        return layout.part_at(key, HOMES)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents."""
        config = self.denoiser.config
        return config.in_channels, config.sample_size, config.sample_size

    def check(self) -> None:
        """Check the scheduler, the sample size, the channels of the latents, and the encoders. Raises `BadModel`."""
        super().check()
        config, vae = self.denoiser.config, getattr(self.pipe, "vae", None)
        size: Any = config.sample_size
        if type(size) is not int or not 1 <= size <= LARGEST or size % config.patch_size:
            known = f"a multiple of its patch of {config.patch_size} up to {LARGEST}"
            raise BadModel(f"the sample_size in the transformer's configuration is {short(size)}: it must be {known}")
        channels = getattr(getattr(vae, "config", None), "latent_channels", config.in_channels)
        if config.in_channels != channels:
            raise BadModel(f"the transformer reads {config.in_channels} channels and the autoencoder has {channels}")
        if getattr(self.pipe, "text_encoder_2", None) is None:
            raise BadModel("SD3 reads its prompts by two CLIP text encoders, and text_encoder_2 is missing")

    # --- text ---
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts: tokens of both CLIPs side by side, padded with zeros, then of T5; pooled vectors of both."""
        pipe = self.pipe
        text.warn_if_cut(pipe.tokenizer, prompts, stacklevel=3)
        if self._has_t5:
            text.warn_if_cut(pipe.tokenizer_3, prompts, 3, self._length)
        options: dict[str, Any] = {"do_classifier_free_guidance": False, "max_sequence_length": self._length}
        tokens, _, pooled, _ = pipe.encode_prompt(list(prompts), None, None, pipe.text_encoder.device, **options)
        return Context(tokens, pooled).to(self.denoiser.dtype)

    def text_encoders(self) -> tuple[Any, ...]:
        """Return both CLIP text encoders; T5 reads other token ids."""
        return (self.pipe.text_encoder, self.pipe.text_encoder_2)

    def tokenizers(self) -> tuple[Any, ...]:
        """Return both CLIP tokenizers."""
        return (self.pipe.tokenizer, self.pipe.tokenizer_2)

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens for CLIP, then those for T5."""
        clip = text.tokens(self.pipe.tokenizer, prompt)
        if not self._has_t5:
            return (clip,)
        return (clip, text.tokens(self.pipe.tokenizer_3, prompt, self._length, len(clip.ids)))

    @property
    def _has_t5(self) -> bool:
        return getattr(self.pipe, "text_encoder_3", None) is not None

    @property
    def _length(self) -> int:
        """Return the number of T5's tokens."""
        return min(LENGTH, self.pipe.tokenizer_3.model_max_length) if self._has_t5 else LENGTH
