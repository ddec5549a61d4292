"""The text side: a prompt is one token of 8 numbers. A class name stands for a row of a table, "" for no prompt.

The table is a weight of the model, trained with it, and is normalised whenever it is read: "normalize the input
embeddings during training and inference" (Pham et al. 2024, https://arxiv.org/abs/2404.03631, section 10).
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from efface.digits.net import WIDTH
from efface.errors import BadInput, unknown

NO_CLASS = -1


def normalised(vectors: Float[Tensor, "*n 8"]) -> Float[Tensor, "*n 8"]:
    """Return vectors on the unit sphere; zero, the empty prompt, stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def as_prompt(vector: Float[Tensor, " 8"]) -> str:
    """Return the prompt that `Reader` reads as this vector."""
    return " ".join(f"{value:.6g}" for value in vector.tolist())


def prompt_vector(text: str) -> Float[Tensor, " 8"]:
    """Return the vector of a prompt of 8 numbers, normalised; raises `ValueError` for anything else."""
    numbers = [float(word) for word in text.split()]
    if len(numbers) != WIDTH or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is not {WIDTH} finite numbers")
    return normalised(torch.tensor(numbers))


class Reader:
    """Read prompts as a tokenizer would: the number of a class, or 8 numbers as they are.

    >>> Reader(("0", "1"))(["1", ""]).input_ids
    tensor([[ 1],
            [-1]])
    """

    model_max_length = 1

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)

    def __call__(self, prompts: str | Sequence[str], **_options: Any) -> SimpleNamespace:
        """Return input_ids (b, 1), -1 for a prompt that names no class, vectors (b, 1, 8) and attention_mask (b, 1).

        vectors: what the prompts say that name no class, normalised; zero for no prompt and for classes.
        Raises `BadInput`, `UnknownName`.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        read = [self.read(text) for text in texts]
        ids, vectors = torch.tensor([[number] for number, _ in read]), torch.stack([vector for _, vector in read])
        return SimpleNamespace(input_ids=ids, vectors=vectors[:, None], attention_mask=torch.ones_like(ids))

    def read(self, text: str) -> tuple[int, Float[Tensor, " 8"]]:
        """Return a prompt's class, -1 for none, and the vector that it says itself."""
        words, nothing = text.split(), torch.zeros(WIDTH)
        if not words:
            return NO_CLASS, nothing
        if text.strip() in self.names:
            return self.names.index(text.strip()), nothing
        if not all(map(_is_number, words)):
            raise unknown("prompt", text, self.names)
        try:
            return NO_CLASS, prompt_vector(text)
        except ValueError:
            known = ", ".join(self.names)
            raise BadInput(f"a prompt is a class ({known}) or {WIDTH} finite numbers, got {text!r}") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class Words(nn.Module):
    """Look classes up in a table of one row a class, as a text encoder looks up its tokens.

    table: its weights (classes, 8), random normal numbers until they are trained.
    """

    config = SimpleNamespace(use_attention_mask=False)

    def __init__(self, classes: int):
        super().__init__()
        self.table = nn.Embedding(classes, WIDTH)

    @property
    def device(self) -> torch.device:
        """Return where the table is."""
        return self.table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return its precision."""
        return self.table.weight.dtype

    def forward(self, ids: Int[Tensor, "b 1"], vectors: Float[Tensor, "b 1 8"] | None = None) -> Float[Tensor, "b 1 8"]:
        """Return the context: the class's row, normalised, or the vector (zero by default) where there is no class."""
        rows = normalised(self.table(ids.clamp(min=0)))
        return torch.where(ids[..., None] >= 0, rows, torch.zeros_like(rows) if vectors is None else vectors)
