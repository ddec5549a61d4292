"""Encode prompts to tokens and token vectors, as the diffusers pipelines do."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Tokens(NamedTuple):
    """Hold a prompt's token ids and the positions of its words.

    ids: all token ids, padded to the tokenizer's length.
    subject: index of the last token of the text, and for "" that of what comes before the words: 0, the start token of
        CLIP, or -1 for T5, which has none.
    eos: index of the end token.
    start: where these tokens begin in a context; 0 unless a family joins several encoders' tokens.
    first: index of the first token of the text: 1 for CLIP, 0 for T5.
    """

    ids: tuple[int, ...]
    subject: int
    eos: int
    start: int = 0
    first: int = 1

    @property
    def words(self) -> tuple[int, ...]:
        """Return the ids of the text itself, without start, end and padding."""
        return self.ids[self.first : self.eos]


def tokens(tokenizer: Any, prompt: str, length: int = 0, start: int = 0) -> Tokens:
    """Return a prompt's token ids and the positions of its last word token and of the end token.

    length: of the ids; 0 stands for the tokenizer's own. start: as in `Tokens`.
    """
    length = length or tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
    count = len(tokenizer(prompt, truncation=True, max_length=length).input_ids)  # with start and end
    first = len(tokenizer("").input_ids) - 1
    return Tokens(tuple(ids), count - 2, count - 1, start, first)


def word_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts alone, without start and end."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids


def encode(tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> Float[Tensor, "b len dim"]:
    """Return the text encoder's last hidden states; warns when a prompt is cut off."""
    warn_if_cut(tokenizer, prompts, stacklevel=4)
    length = tokenizer.model_max_length
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = batch.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    ids = batch.input_ids.to(encoder.device)
    return encoder(ids, attention_mask=mask if mask is None else mask.to(encoder.device))[0]


def warn_if_cut(tokenizer: Any, prompts: Sequence[str], stacklevel: int, length: int = 0) -> None:
    """Warn about prompts that are longer than `length`, 0 for the tokenizer's own."""
    length = length or tokenizer.model_max_length
    for prompt, ids in zip(prompts, tokenizer(list(prompts), verbose=False).input_ids, strict=True):
        if len(ids) > length:
            warnings.warn(f"prompt cut off: {len(ids)} tokens, {length} fit: {prompt[:60]!r}...", stacklevel=stacklevel)
