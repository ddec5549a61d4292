"""Phrases around what is learned: a query's prompt with a slot in place of the concept's name."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from efface.concept import TEMPLATES, Concept
from efface.models.model import Model
from efface.models.token_vectors import SLOT, encode, slots
from efface.query import Query


def phrase(concept: Concept, prompt: str) -> str:
    """Return a prompt with {} in place of the concept's name; the default of its kind if it does not name it."""
    named = re.compile(rf"(?<!\w){re.escape(concept.name)}(?!\w)", re.IGNORECASE)
    clean = prompt.replace(SLOT, "")
    if named.search(clean):
        return named.sub(SLOT, clean, count=1)
    return TEMPLATES[concept.kind].format(SLOT)


@torch.no_grad()
def queries_with(
    model: Model,
    concept: Concept,
    vectors: Float[Tensor, "n k dim"],
    queries: Sequence[Query],
    phrases: Sequence[str] = (),
) -> tuple[Query, ...]:
    """Return the given queries with every row of learned vectors in the name's place, vectors outermost.

    phrases: a text with {} for each query; by default its prompt, see `phrase`.
    """
    texts = list(phrases) or [phrase(concept, query.prompt) for query in queries]
    known = list(dict.fromkeys(texts))
    filled = slots(model, known, vectors.shape[1])
    found = []
    for row in vectors:
        contexts = encode(model, filled, row[None]).float()
        for query, text in zip(queries, texts, strict=True):
            i = known.index(text)
            context = contexts[i : i + 1].map(torch.clone)
            found.append(replace(query, prompt=text.replace(SLOT, "<*>"), context=context, latents=None, start=0))
    return tuple(found)
