"""Attention in training: how it is computed, where a concept's words are, and maps turned down at some positions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor

from efface.model import Model


class CpuAttention:
    """Attend in the open where a gradient will flow back, fused elsewhere.

    On CPUs fused attention is the faster one forwards and by far the slower one backwards. It takes memory to hold the
    maps, so this is for small latents.
    """

    opened, fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from (b, pixels, ch) to (b, len, dim)."""
        values = (hidden_states, encoder_hidden_states, *attn.parameters())
        learns = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values)
        how = self.opened if learns else self.fused
        return how(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def positions(model: Model, prompt: str, words: str) -> list[int]:
    """Return the positions of the words among the prompt's tokens, [] where they do not stand."""
    ids, _, end = model.tokens(prompt)
    tokens = model.tokens(words)
    wanted = tokens.ids[1 : tokens.eos]
    starts = (i for i in range(1, end - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted)
    return [i + k for i in starts for k in range(len(wanted))]


@contextmanager
def scaled_maps(model: Model, scale: Float[Tensor, "b len"]) -> Iterator[None]:
    """Multiply cross-attention probabilities by `scale` inside the block, without normalising them again.

    This is the re-weighting of prompt-to-prompt (Hertz et al. 2022, https://arxiv.org/abs/2208.01626). One row per
    image of the batch.
    """
    layers = [m for m in model.unet.modules() if getattr(m, "is_cross_attention", False)]
    before = [(layer, layer.processor) for layer in layers]

    def wrapped(layer: object, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = type(layer).get_attention_scores(layer, query, key, mask)  # pyright: ignore[reportAttributeAccessIssue]
        return (maps.unflatten(0, (len(scale), -1)) * scale[:, None, None].to(maps.dtype)).flatten(0, 1)

    try:
        for layer in layers:
            layer.processor = AttnProcessor()
            layer.get_attention_scores = lambda *rest, layer=layer: wrapped(layer, *rest)
        yield
    finally:
        for layer, processor in before:
            layer.processor = processor
            vars(layer).pop("get_attention_scores", None)
