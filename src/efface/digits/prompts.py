"""The text side: a prompt is one token of 8 numbers. A class name stands for its own vector, "" for no prompt."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.digits.net import WIDTH
from efface.errors import BadInput, unknown


def spread(classes: int, seed: int = 2, rounds: int = 80) -> Float[Tensor, "classes 8"]:
    """Return unit vectors, one a class, far from each other: random ones, pushed apart.

    Not the best code there is: in that one two classes would be each other's opposites, which is no class like others.
    """
    codes = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    codes = torch.nn.functional.normalize(codes, dim=1)
    for _ in range(rounds):
        near = torch.exp(4 * codes @ codes.T).fill_diagonal_(0)
        codes = torch.nn.functional.normalize(codes - 0.02 * near @ codes, dim=1)
    return codes.float()


def normalised(vectors: Float[Tensor, "*n 8"]) -> Float[Tensor, "*n 8"]:
    """Return vectors on the unit sphere; zero, the empty prompt, stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def as_prompt(vector: Float[Tensor, " 8"]) -> str:
    """Return the prompt that `Reader` reads as this vector."""
    return " ".join(f"{value:.6g}" for value in vector.tolist())


class Reader:
    """Read prompts as a tokenizer would: its one token a prompt is the vector itself.

    >>> Reader(("0", "1"), spread(2))(["1"]).input_ids.shape
    torch.Size([1, 1, 8])
    """

    model_max_length = 1

    def __init__(self, names: Sequence[str], codes: Float[Tensor, "classes 8"]):
        self.names, self.codes = tuple(names), codes

    def __call__(self, prompts: str | Sequence[str], **_options: Any) -> SimpleNamespace:
        """Return input_ids (b, 1, 8) and attention_mask (b, 1); raises `BadInput`, `UnknownName`."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        vectors = torch.stack([self.vector(text) for text in texts])[:, None]
        return SimpleNamespace(input_ids=vectors, attention_mask=torch.ones(len(texts), 1, dtype=torch.long))

    def vector(self, text: str) -> Float[Tensor, " 8"]:
        """Return the vector of a prompt: a class by name, 8 numbers (normalised), or nothing."""
        words = text.split()
        if not words:
            return torch.zeros(WIDTH)
        if text.strip() in self.names:
            return self.codes[self.names.index(text.strip())]
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise unknown("prompt", text, self.names) from None
        if len(numbers) != WIDTH or not all(map(math.isfinite, numbers)):
            raise BadInput(f"a prompt is a class ({', '.join(self.names)}) or {WIDTH} finite numbers, got {text!r}")
        return normalised(torch.tensor(numbers))


class Passing(nn.Module):
    """Stand where a text encoder would: the token is the context."""

    config = SimpleNamespace(use_attention_mask=False)
    device = torch.device("cpu")
    dtype = torch.float32

    def forward(self, ids: Float[Tensor, "b 1 8"], attention_mask: Tensor | None = None) -> tuple[Tensor]:
        """Return (context,)."""
        return (ids,)
