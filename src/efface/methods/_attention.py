"""Where a concept's words are in a prompt, and cross-attention maps turned down at some positions."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor

from efface.model import Model


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
