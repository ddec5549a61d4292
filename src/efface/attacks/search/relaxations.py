"""Tokens as continuous variables: vectors that are projected to the nearest token, or distributions over all tokens.

Both give the vectors of real tokens and pass the gradient straight through to the variables.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from efface.attacks.search import simplex
from efface.attacks.search.vocabulary import Vocabulary


class Relaxation(ABC):
    """Base class: n rows of k tokens.

    values: the variables, n rows.
    """

    values: nn.Parameter

    @abstractmethod
    def vectors(self, rows: Sequence[int], rngs: Sequence[torch.Generator]) -> Float[Tensor, "r k dim"]:
        """Return the vectors of the tokens that these rows stand for in one step; gradients reach `values`."""

    @abstractmethod
    def tokens(self) -> Int[Tensor, "n k"]:
        """Return the token numbers that every row stands for."""

    def project(self) -> None:  # noqa: B027
        """Bring the variables back to where they are allowed, after a step; by default nothing."""


class Nearest(Relaxation):
    """Vectors in the embedding table's space; each stands for its nearest token by cosine.

    Wen et al. 2023, Hard Prompts Made Easy (PEZ), https://arxiv.org/abs/2302.03668.
    """

    def __init__(self, vocabulary: Vocabulary, start: Int[Tensor, "n k"]):
        """Start at tokens, given by their numbers."""
        self.vocabulary = vocabulary
        self.values = nn.Parameter(vocabulary.vectors[start.to(vocabulary.vectors.device)].clone())

    def vectors(self, rows: Sequence[int], rngs: Sequence[torch.Generator]) -> Float[Tensor, "r k dim"]:
        """Return the nearest tokens' vectors; the gradient of a token's vector is that of the variable."""
        own = self.values[list(rows)]
        return self.vocabulary.vectors[self.vocabulary.nearest(own)] + (own - own.detach())

    def tokens(self) -> Int[Tensor, "n k"]:
        """Return the nearest tokens."""
        return self.vocabulary.nearest(self.values)


class Simplex(Relaxation):
    """Distributions over the vocabulary, uniform at first; a step draws a token from each.

    The gradient of the drawn one-hot vector, clipped to [-1, 1], is that of the probabilities (TextGrad, Hou et al.
    2022, https://arxiv.org/abs/2212.09254, as in UnlearnDiffAtk's code).
    """

    def __init__(self, vocabulary: Vocabulary, rows: int, count: int):
        size = len(vocabulary)
        self.vocabulary = vocabulary
        self.values = nn.Parameter(torch.full((rows, count, size), 1 / size, device=vocabulary.vectors.device))

    def vectors(self, rows: Sequence[int], rngs: Sequence[torch.Generator]) -> Float[Tensor, "r k dim"]:
        """Draw a token from every distribution and return the tokens' vectors."""
        own = self.values[list(rows)]
        pairs = zip(own.detach().cpu(), rngs, strict=True)
        drawn = torch.stack([torch.multinomial(one, 1, generator=rng)[:, 0] for one, rng in pairs])
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient.clamp(-1, 1))
        table = self.vocabulary.vectors
        return table[drawn.to(table.device)] + (own - own.detach()) @ table

    def tokens(self) -> Int[Tensor, "n k"]:
        """Return the most probable tokens."""
        return self.values.detach().argmax(-1)

    @torch.no_grad()
    def project(self) -> None:
        """Project every distribution onto the simplex."""
        self.values.copy_(simplex.project(self.values.flatten(0, 1)).view_as(self.values))


__all__ = ["Nearest", "Relaxation", "Simplex"]
