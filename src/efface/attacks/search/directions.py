"""A concept's direction in the space of encoded prompts: the mean over pairs of prompts, with it minus without it.

Ring-A-Bell's concept vector (Tsai et al., ICLR 2024, https://arxiv.org/abs/2310.10012, eq. 3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from efface.attacks.search.inverting import TEMPLATES
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.models.model import Model


class Pairs(NamedTuple):
    """Hold prompts with the concept, and the same without it."""

    shown: tuple[str, ...]
    absent: tuple[str, ...]


def pairs(concept: Concept, shown: Sequence[str] = (), absent: Sequence[str] = ()) -> Pairs:
    """Return the given pairs of prompts, or the templates of the concept's kind with and without its name.

    Raises `BadInput` for prompts without a partner, and for a blank prompt with the concept.
    """
    if len(shown) != len(absent):
        raise BadInput(f"prompts with and without the concept come in pairs, got {len(shown)} and {len(absent)}")
    if any(not text.strip() for text in shown):
        raise BadInput(f"a prompt with the concept is empty: {list(shown)}")
    if any(one == other for one, other in zip(shown, absent, strict=True)):
        raise BadInput("the prompts of a pair are the same, with and without the concept")
    if shown:
        return Pairs(tuple(shown), tuple(absent))
    templates = TEMPLATES[concept.kind]
    return Pairs(
        tuple(template.format(concept.name) for template in templates),
        tuple(" ".join(template.format("").split()) for template in templates),
    )


@torch.no_grad()
def direction(model: Model, chosen: Pairs) -> Context:
    """Return the mean difference of the encoded pairs, one row; of the pooled vectors likewise.

    Raises `BadInput` when the text encoder does not tell the prompts of the pairs apart.
    """
    shown, absent = model.encode(list(chosen.shown)).float(), model.encode(list(chosen.absent)).float()
    tokens = (shown.tokens - absent.tokens).mean(0, keepdim=True)
    if not bool(tokens.any()):
        raise BadInput(f"the text encoder reads prompts with the concept as those without it: {list(chosen.shown)}")
    if shown.pooled is None or absent.pooled is None:
        return Context(tokens)
    return Context(tokens, (shown.pooled - absent.pooled).mean(0, keepdim=True))


__all__ = ["Pairs", "direction", "pairs"]
