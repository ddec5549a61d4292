"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5; a transformer that predicts a flow.

Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from efface.context import Context
from efface.errors import BadModel
from efface.models import text
from efface.models.transformer_family import TransformerFamily
from efface.util.ranges import short

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
