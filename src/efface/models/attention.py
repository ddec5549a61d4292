"""Cross-attention: record probability maps, scale them at some positions, find the positions of words in a prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor, bmm

from efface.errors import BadInput
from efface.models.model import Model


class Recorder:
    """Attention processor that appends each probability map to a list."""

    def __init__(self, maps: list[Tensor]) -> None:
        self.maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from (b, pixels, ch) to (b, len, dim), recording softmax(Q K^T / sqrt(d)), (b, heads, pixels, len)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(project(context)) for project in (attn.to_k, attn.to_v))
        maps = attn.get_attention_scores(query, key, attention_mask)  # (b·heads, pixels, len)
        self.maps.append(maps.unflatten(0, (-1, attn.heads)))
        out = attn.batch_to_head_dim(bmm(maps, value))
        for layer in attn.to_out:  # a projection and dropout
            out = layer(out)
        return out / attn.rescale_output_factor


def layers(model: Model) -> dict[str, Any]:
    """Return the cross-attention layers by name ("down_blocks.0.….attn2"); raises `BadInput` for a model without."""
    modules = model.denoiser.named_modules()
    found = {name: module for name, module in modules if getattr(module, "is_cross_attention", False)}
    if not found:
        raise BadInput(
            f"{model.name or 'this model'} ({model.family.TITLE}) has no cross-attention: it reads text and image in "
            "one joint attention, so that there are no maps of words to read or to change; give another method"
        )
    return found


@contextmanager
def recorded(model: Model) -> Iterator[dict[str, list[Tensor]]]:
    """Record attention maps inside the block; yields the dict of `record`."""
    before = dict(model.denoiser.attn_processors)
    try:
        yield record(model)
    finally:
        model.denoiser.set_attn_processor(before)


def record(model: Model) -> dict[str, list[Tensor]]:
    """Return a dict that collects cross-attention maps (b, heads, pixels, len), by layer and in order of the calls.

    Names are those of the modules ("down_blocks.0.….attn2"). The maps carry gradients; clear the lists to free them.
    With gradient checkpointing, which calls layers again in the backward pass, recording must not have ended by then.
    """
    unet = model.denoiser
    maps: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    names = list(maps)
    own = {f"{name}.processor": Recorder(maps[name]) for name in names}
    unet.set_attn_processor({**unet.attn_processors, **own})
    return maps


def positions(model: Model, prompt: str, words: str) -> list[int]:
    """Return the positions of the words among the prompt's tokens, [] when they are not in it."""
    whole = model.tokens(prompt)
    ids, end = whole.ids, whole.eos
    wanted = model.tokens(words).words
    starts = (i for i in range(whole.first, end - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted)
    return [i + k for i in starts for k in range(len(wanted))]


def end_positions(model: Model, prompt: str) -> list[int]:
    """Return the positions of the end token: all after the text in Stable Diffusion 1.x, which pads with it.

    Stable Diffusion 2.x pads with another token, so that the end token is there once.
    """
    tokens = model.tokens(prompt)
    return [i for i, token in enumerate(tokens.ids) if token == tokens.ids[tokens.eos]]


@contextmanager
def scaled_maps(model: Model, scale: Float[Tensor, "b len"]) -> Iterator[None]:
    """Multiply cross-attention probabilities by `scale` inside the block, without normalising them again.

    This is the re-weighting of prompt-to-prompt (Hertz et al. 2022, https://arxiv.org/abs/2208.01626). One row per
    image of the batch.
    """
    found = list(layers(model).values())
    before = [(layer, layer.processor) for layer in found]

    def wrapped(layer: object, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = type(layer).get_attention_scores(layer, query, key, mask)  # pyright: ignore[reportAttributeAccessIssue]
        return (maps.unflatten(0, (len(scale), -1)) * scale[:, None, None].to(maps.dtype)).flatten(0, 1)

    try:
        for layer in found:
            layer.processor = AttnProcessor()
            layer.get_attention_scores = lambda *rest, layer=layer: wrapped(layer, *rest)
        yield
    finally:
        for layer, processor in before:
            layer.processor = processor
            vars(layer).pop("get_attention_scores", None)
