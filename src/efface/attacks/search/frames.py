"""Prompts as token ids some of which are free, and their encoding with a vector for every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.context import Context
from efface.errors import BadInput
from efface.models.model import Model
from efface.models.token_vectors import WORD, Slots, encode


@dataclass(frozen=True)
class Frame:
    """Hold a prompt's token ids, without start and end, and the positions among them that are free.

    What stands in `ids` at a free position does not matter.
    """

    ids: tuple[int, ...]
    free: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, tuple[int, ...]]:
        """Return its length and free positions; frames of one shape are encoded in one batch."""
        return len(self.ids), self.free

    def filled(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the prompt's ids with the given ones at the free positions."""
        found = list(self.ids)
        for place, one in zip(self.free, ids, strict=True):
            found[place] = one
        return tuple(found)


def alone(count: int) -> Frame:
    """Return a prompt of free tokens only."""
    return Frame((0,) * count, tuple(range(count)))


def prefix(ids: Sequence[int], count: int) -> Frame:
    """Return a prompt with free tokens before it."""
    return Frame((0,) * count + tuple(ids), tuple(range(count)))


def between(ids: Sequence[int], every: int) -> Frame:
    """Return a prompt with one free token before it and one after each `every` of its tokens."""
    free = tuple(i * (every + 1) for i in range(len(ids) // every + 1))
    found: list[int] = []
    for i, one in enumerate(ids):
        found += [0, one] if i % every == 0 else [one]
    return Frame(tuple(found) + (0,) * (len(ids) % every == 0), free)


def check_fits(model: Model, frame: Frame) -> None:
    """Raise `BadInput` for a prompt of more tokens than the text encoder reads."""
    empty = model.tokens("")
    room = len(empty.ids) - empty.eos - 1
    if len(frame.ids) > room:
        raise BadInput(f"a prompt of {len(frame.ids)} tokens does not fit: the text encoder reads {room}")


def encode_frames(
    model: Model, frames: Sequence[Frame], every: Float[Tensor, "ids dim"], vectors: Float[Tensor, "n k dim"]
) -> Context:
    """Encode prompts of one shape with vectors at their free positions; differentiable in them.

    every: the vector of each token id.
    """
    ids = torch.tensor([frame.ids for frame in frames], device=every.device)
    places = torch.tensor(frames[0].free, device=every.device)
    return encode_rows(model, every[ids].index_copy(1, places, vectors.to(every)))


def encode_ids(model: Model, every: Float[Tensor, "ids dim"], ids: Int[Tensor, "n length"]) -> Context:
    """Encode token ids, without start and end."""
    return encode_rows(model, every[ids.to(every.device)])


def encode_rows(model: Model, vectors: Float[Tensor, "n length dim"]) -> Context:
    """Encode rows of token vectors as prompts of that length."""
    n, length = vectors.shape[:2]
    text = " ".join([WORD] * length)
    first = model.tokens(text).first
    return encode(model, Slots((text,) * n, torch.arange(first, first + length).expand(n, -1)), vectors)


__all__ = ["Frame", "alone", "between", "check_fits", "encode_frames", "encode_ids", "encode_rows", "prefix"]
