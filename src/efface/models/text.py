"""Encode prompts to tokens and token vectors, as the diffusers pipelines do."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Tokens(NamedTuple):
    """Hold a prompt's token ids and the positions of its words.

    ids: all token ids, padded to the tokenizer's length.
    subject: index of the last token of the text (0, the start token, for "").
    eos: index of the end token.
    start: where these tokens begin in a context; 0 unless a family joins several encoders' tokens.
    """

    ids: tuple[int, ...]
    subject: int
    eos: int
    start: int = 0


def tokens(tokenizer: Any, prompt: str) -> Tokens:
    """Return a prompt's token ids and the positions of its last word token and of the end token."""
    length = tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    count = len(tokenizer(prompt, truncation=True, max_length=length).input_ids)  # with start and end
    return Tokens(tuple(ids), count - 2, count - 1)


def encode(tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> Float[Tensor, "b len dim"]:
    """Return the text encoder's last hidden states; warns when a prompt is cut off."""
    warn_if_cut(tokenizer, prompts, stacklevel=4)
    length = tokenizer.model_max_length
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = batch.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    ids = batch.input_ids.to(encoder.device)
    return encoder(ids, attention_mask=mask if mask is None else mask.to(encoder.device))[0]


def warn_if_cut(tokenizer: Any, prompts: Sequence[str], stacklevel: int) -> None:
    """Warn about prompts that are longer than the tokenizer's length."""
    length = tokenizer.model_max_length
    for prompt, ids in zip(prompts, tokenizer(list(prompts), verbose=False).input_ids, strict=True):
        if len(ids) > length:
            warnings.warn(f"prompt cut off: {len(ids)} tokens, {length} fit: {prompt[:60]!r}...", stacklevel=stacklevel)
