"""The tokens a search may use, and prompts made of them: ids to text that is tokenised to the same ids, or says not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from efface.attacks.search.frames import encode_ids
from efface.errors import BadInput
from efface.models.model import Model
from efface.models.text import word_ids
from efface.models.token_vectors import table
from efface.query import Query

AT_ONCE = 2048  # queries that are compared with the whole vocabulary at once


class Asked(NamedTuple):
    """Hold a query made of token ids, and whether its text is tokenised to the same ids."""

    query: Query
    retokenises: bool


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Hold the tokens that a search may use; a token's number is its place here, its id that of the tokenizer.

    ids: ascending. vectors: theirs in the embedding tables; with two text encoders both side by side.
    every: the vectors of all ids, (ids, dim).
    """

    model: Model
    ids: Int[Tensor, " v"]
    vectors: Float[Tensor, "v dim"]
    every: Float[Tensor, "ids dim"]

    @classmethod
    def of(cls, model: Model, fragments: bool = False, forbid: Sequence[str] = ()) -> "Vocabulary":
        """Return the tokens that may be used: never those of start, end and padding.

        fragments: also tokens that occur only inside words, which typed text does not give; without them every
            sequence of tokens is a text that is tokenised to it. forbid: texts whose tokens may not be used.
        Raises `BadInput` for a model without a text encoder, and when no token is left.
        """
        known, readers = table(model), tokenizers(model)
        special = {i for one in readers for i in one.all_special_ids}
        ids = [i for i in range(len(known)) if i not in special]
        pieces = readers[0].convert_ids_to_tokens(ids)
        ids = [i for i, piece in zip(ids, pieces, strict=True) if piece is not None]
        if not fragments:
            texts = [readers[0].decode([i], clean_up_tokenization_spaces=False).strip() for i in ids]
            for one in readers:
                again = word_ids(one, texts)
                kept = [(i, text) for i, text, own in zip(ids, texts, again, strict=True) if own == [i]]
                ids, texts = [i for i, _ in kept], [text for _, text in kept]
        banned = {i for own in word_ids(readers[0], forbid) for i in own} if forbid else set[int]()
        allowed = torch.tensor([i for i in ids if i not in banned], dtype=torch.long)
        if not len(allowed):
            raise BadInput(f"{model.name or 'this model'} has no token that a search may use")
        return cls(model, allowed, known[allowed.to(known.device)], known)

    def __len__(self) -> int:
        return len(self.ids)

    def random(self, shape: Sequence[int], rng: torch.Generator) -> Int[Tensor, "..."]:
        """Draw token numbers uniformly."""
        return torch.randint(len(self), tuple(shape), generator=rng)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "*n dim"]) -> Int[Tensor, "*n"]:
        """Return the number of the token with the largest cosine to every vector."""
        own = normalize(self.vectors, dim=1)
        rows = vectors.detach().flatten(0, -2).split(AT_ONCE)
        return torch.cat([(normalize(part, dim=1) @ own.mT).argmax(1) for part in rows]).view(vectors.shape[:-1])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return tokenizers(self.model)[0].decode(list(ids), clean_up_tokenization_spaces=False).strip()

    def retokenises(self, ids: Sequence[int]) -> bool:
        """Return whether the text of these ids is tokenised to them, by every tokenizer."""
        text = self.text(ids)
        return all(word_ids(one, [text]) == [list(ids)] for one in tokenizers(self.model))

    @torch.no_grad()
    def query(self, like: Query, ids: Sequence[int], model: Model | None = None) -> Asked:
        """Return a query that reads these tokens: as text, or as a context where the text gives other tokens.

        model: who encodes that context, by default the vocabulary's own.
        """
        plain = replace(like, prompt=self.text(ids), context=None, latents=None, start=0)
        if self.retokenises(ids):
            return Asked(plain, True)
        context = encode_ids(model or self.model, self.every, torch.tensor([list(ids)])).float()
        return Asked(replace(plain, context=context), False)


def tokenizers(model: Model) -> tuple[Any, ...]:
    """Return the tokenizers of a model's text encoders, which give the same ids up to the end token."""
    return model.family.tokenizers()


__all__ = ["Asked", "Vocabulary", "tokenizers"]
