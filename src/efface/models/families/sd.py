"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts eps or v."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from efface.context import Context
from efface.models import text
from efface.models.unet_family import UNetFamily


@dataclass(frozen=True, eq=False)
class StableDiffusion(UNetFamily):
    """View a Stable Diffusion 1.x or 2.x pipeline."""

    TITLE: ClassVar[str] = "Stable Diffusion 1.x and 2.x"

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Say whether a pipeline has one text encoder and a UNet that reads nothing but its tokens."""
        unet: Any = getattr(pipe, "unet", None)
        one = getattr(pipe, "text_encoder_2", None) is None
        return one and hasattr(unet, "attn_processors") and unet.config.get("addition_embed_type") is None

    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts to the text encoder's last hidden states."""
        return Context(text.encode(self.pipe.tokenizer, self.pipe.text_encoder, prompts).to(self.denoiser.dtype))

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens."""
        return (text.tokens(self.pipe.tokenizer, prompt),)
