"""Text vectors of a closed-form edit: prompts of a concept, and the rows that each variant edits.

Positions come from the tokenizer (start token, words, end token, padding to its own length), so that any text
length and vocabulary works.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput, BadModel
from efface.models.model import Model
from efface.util.progress import progress

BATCH = 32  # prompts encoded at once

Rows = Float[Tensor, "n dim"]
Pair = tuple[Tensor, Tensor]  # rows of a prompt, and the rows that each should read as


class Phrase(NamedTuple):
    """A prompt template and the name that is put into it."""

    template: str
    name: str

    @property
    def text(self) -> str:
        """Return the whole prompt."""
        return self.template.replace("{}", self.name).strip()

    @property
    def head(self) -> str:
        """Return the prompt up to the name's last word."""
        return (self.template.partition("{}")[0] + self.name).strip()


class Text(NamedTuple):
    """Hold an encoded prompt, as one text encoder (or several that read the same tokens) gives it.

    vectors: one per position, padding included.
    word: position of the name's last token; that of the token before it, if there is one, when the name is empty.
    ids: token ids, from the start token, if there is one, through the end token.
    """

    vectors: Float[Tensor, "len dim"]
    word: int
    ids: tuple[int, ...]


Encoded = tuple[Text, ...]  # a prompt, one text for each stream of tokens: CLIP's and T5's are rows of their own


def check_template(template: str) -> None:
    """Raise `BadInput` unless the template contains {} once."""
    if template.count("{}") != 1:
        raise BadInput(f"a template contains {{}}, the place of the name, once; got {template!r}")


def read(model: Model, phrases: Sequence[Phrase]) -> Iterator[Encoded]:
    """Encode prompts in batches, in order, on the CPU in float32 (or wider).

    Raises `BadInput` for a name without tokens.
    """
    before = cache(lambda template: [tokens.subject for tokens in model.family.streams(Phrase(template, "").head)])
    for start in progress(range(0, len(phrases), BATCH), "texts"):
        part = phrases[start : start + BATCH]
        for phrase, vectors in zip(part, vectors_of(model, [phrase.text for phrase in part]), strict=True):
            streams = model.family.streams(phrase.text)
            heads = streams if phrase.head == phrase.text else model.family.streams(phrase.head)
            found = []
            for tokens, head, bare in zip(streams, heads, before(phrase.template), strict=True):
                if phrase.name.strip() and head.subject <= bare:
                    raise BadInput(f"{phrase.name!r} has no tokens in this model's vocabulary")
                own = vectors[tokens.start : tokens.start + len(tokens.ids)]
                found.append(Text(own, max(0, head.subject), tokens.ids[: tokens.eos + 1]))
            yield tuple(found)


@torch.no_grad()
def vectors_of(model: Model, prompts: Sequence[str]) -> Float[Tensor, "b len dim"]:
    """Encode prompts to the token vectors that the text weights read.

    Raises `BadModel` when the model reads another width than its text encoders give.
    """
    found = model.encode(prompts).tokens
    if found.shape[-1] != model.width:
        raise BadModel(
            f"cross-attention reads vectors of width {model.width}, the text encoder gives {found.shape[-1]}"
        )
    return found.cpu() if found.dtype == torch.float64 else found.float().cpu()


def tail(old: Text, new: Text) -> tuple[Rows, Rows]:
    """Pair the rows from the last word on, through end token and padding (UCE 2023).

    The longer head shortens both sides, so that last word, end token and padding are paired with each other.
    """
    length = len(old.vectors) - max(old.word, new.word)
    return old.vectors[old.word :][:length], new.vectors[new.word :][:length]


def last(old: Text, new: Text) -> tuple[Rows, Rows]:
    """Pair the row of the last word only (UCE 2025)."""
    return old.vectors[old.word :][:1], new.vectors[new.word :][:1]


def every(old: Text, new: Text) -> tuple[Rows, Rows]:
    """Pair all rows by position, start token included (RECE's code)."""
    return old.vectors, new.vectors


def aligned(old: Text, new: Text) -> tuple[Rows, Rows]:
    """Pair every row with the row of the same token in the other prompt (TIME).

    Tokens without a counterpart go to the token at their place, or, if there is none, to the one
    before it. What follows the end token is paired one by one and, when the new prompt runs out, with its last
    row.
    """
    to: list[int] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old.ids, new.ids, autojunk=False).get_opcodes():
        if kind != "insert":
            to += [max(min(j1 + step, j2 - 1), j1 - 1, 0) for step in range(i2 - i1)]
    limit = len(old.vectors)
    to += [min(len(new.ids) + step, limit - 1) for step in range(limit - len(to))]
    return old.vectors, new.vectors[to]


PAIRS: dict[str, Callable[[Text, Text], Pair]] = {"tail": tail, "last": last, "all": every}


def paired(rule: Callable[[Text, Text], Pair], old: Encoded, new: Encoded) -> list[Pair]:
    """Pair the rows of two prompts, each stream of tokens with its own."""
    return [rule(*both) for both in zip(old, new, strict=True)]
