"""SDXL: two CLIP text encoders side by side, a pooled vector and the image's size beside the tokens.

Podell et al. 2023, https://arxiv.org/abs/2307.01952.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from efface.context import Context
from efface.models import text
from efface.models.unet_family import UNetFamily


@dataclass(frozen=True, eq=False)
class SDXL(UNetFamily):
    """View an SDXL base pipeline; images are asked for at the model's own size, not cropped."""

    TITLE: ClassVar[str] = "SDXL"
    PARTS: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2", "vae")

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Say whether a pipeline has two text encoders and a UNet that reads text and sizes beside the tokens."""
        unet: Any = getattr(pipe, "unet", None)
        both = getattr(pipe, "text_encoder_2", None) is not None
        return both and hasattr(unet, "config") and unet.config.get("addition_embed_type") == "text_time"

    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts: the last hidden states but one of both encoders side by side, and the second's pooled one."""
        for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2):
            text.warn_if_cut(tokenizer, prompts, stacklevel=3)
        options: dict[str, Any] = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        device = self.pipe.text_encoder.device
        tokens, _, pooled, _ = self.pipe.encode_prompt(list(prompts), device=device, **options)
        return Context(tokens, pooled).to(self.denoiser.dtype)

    def null(self) -> Context:
        """Return zeros where the pipeline takes them for no prompt, as SDXL base does, else the empty prompt's."""
        empty = self.encode([""])
        return empty.map(torch.zeros_like) if self.pipe.config.force_zeros_for_empty_prompt else empty

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens; both tokenizers have one vocabulary and differ in the padding only."""
        return (text.tokens(self.pipe.tokenizer, prompt),)

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the UNet's keyword arguments: tokens, the pooled vector, and sizes (original, crop, target)."""
        size = self.image_size
        times = torch.tensor([[size, size, 0, 0, size, size]], dtype=c.tokens.dtype, device=c.device)
        added = {"text_embeds": c.pooled, "time_ids": times.expand(count, -1)}
        return {"encoder_hidden_states": c.tokens, "added_cond_kwargs": added}

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context that the UNet's keyword arguments say."""
        return Context(arguments["encoder_hidden_states"], arguments["added_cond_kwargs"]["text_embeds"])
