"""Vectors in place of words: encode prompts whose slots hold given vectors of the text encoders' embedding tables.

What attacks optimise. A slot is one token; with two text encoders (SDXL) a vector is both encoders' side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.context import Context
from efface.errors import BadInput
from efface.models.model import Model

SLOT = "{}"
WORD = "a"  # any word of one token: its vector is replaced


@dataclass(frozen=True, eq=False)
class Slots:
    """Hold prompts with slots.

    prompts: as they are tokenised, with a word for each slot. at: positions of the slots in each prompt's tokens.
    """

    prompts: tuple[str, ...]
    at: Int[Tensor, "b k"]

    def __len__(self) -> int:
        return len(self.prompts)

    def repeat(self, count: int) -> "Slots":
        """Return every prompt `count` times in a row."""
        return Slots(tuple(p for p in self.prompts for _ in range(count)), self.at.repeat_interleave(count, 0))


def encoders(model: Model) -> tuple[Any, ...]:
    """Return the text encoders that read one token sequence; raises `BadInput` for a model that has none."""
    found = model.family.text_encoders()
    if not found:
        raise BadInput(f"{model.name or 'this model'} has no text encoder whose token vectors could be replaced")
    return found


def table(model: Model) -> Float[Tensor, "vocabulary dim"]:
    """Return the vector of every token, fp32: the encoders' embedding tables side by side."""
    return torch.cat([one.get_input_embeddings().weight.detach().float() for one in encoders(model)], 1)


def ids_of(model: Model, text: str) -> list[int]:
    """Return the token ids of a text, without start and end; raises `BadInput` for a text of no words."""
    words = model.tokens(text).words
    if not words:
        raise BadInput(f"the text {text!r} has no words")
    return list(words)


def slots(model: Model, prompts: Sequence[str], count: int) -> Slots:
    """Put `count` slots in place of each prompt's {}; a prompt has exactly one {}.

    Raises `BadInput` for a prompt without {} or with several, and for one that does not leave room for the slots.
    """
    if not prompts or any(prompt.count(SLOT) != 1 for prompt in prompts):
        raise BadInput(f"every prompt needs one {SLOT}, where the vectors go, got {list(prompts)}")
    at, filled = [], []
    for prompt in prompts:
        head, _, tail = prompt.partition(SLOT)
        words = " ".join([WORD] * count)
        text = " ".join(part for part in (head.strip(), words, tail.strip()) if part)
        first = model.tokens(head.strip()).eos
        if first + count > model.tokens(text).eos:
            raise BadInput(f"{count} vectors do not fit into {prompt!r}: the text encoder reads too few tokens")
        at.append(list(range(first, first + count)))
        filled.append(text)
    return Slots(tuple(filled), torch.tensor(at))


def encode(model: Model, filled: Slots, vectors: Float[Tensor, "#b k dim"]) -> Context:
    """Encode prompts with vectors in their slots, one row of vectors for each prompt or one for all; differentiable.

    Raises `BadInput` for vectors of another number or width than the slots.
    """
    b, k = filled.at.shape
    parts = encoders(model)
    widths = [one.get_input_embeddings().weight.shape[1] for one in parts]
    if vectors.dim() != 3 or vectors.shape[1] != k or vectors.shape[2] != sum(widths) or len(vectors) not in (1, b):
        raise BadInput(f"{b} prompts with {k} slots of width {sum(widths)} do not take vectors {list(vectors.shape)}")
    given = vectors.expand(b, -1, -1).split(widths, 2)
    hooks = []
    try:
        for one, own in zip(parts, given, strict=True):
            hooks.append(one.get_input_embeddings().register_forward_hook(_replaced(filled.at, own)))
        return model.encode(list(filled.prompts))
    finally:
        for hook in hooks:
            hook.remove()


def _replaced(at: Tensor, vectors: Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
        index = at.to(out.device)[..., None].expand(-1, -1, out.shape[2])
        return out.scatter(1, index, vectors.to(out))

    return hook


__all__ = ["SLOT", "Slots", "encode", "encoders", "ids_of", "slots", "table"]
