"""Networks of the judge: a small residual CNN classifier, and a CLIP of another design than the model's own."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Images = Float[Tensor, "n 3 h w"]


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        same = stride == 1 and width_in == width
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.skip(x))


class Features(nn.Sequential):
    """Encode 64 × 64 images in [0, 1] as vectors of 4 × `width` numbers, in four stages that halve the image."""

    def __init__(self, width: int):
        self.out = 4 * width
        super().__init__(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1),
            _Block(2 * width, 4 * width, 2), _Block(4 * width, 4 * width, 1), _Block(4 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, input: Images) -> Float[Tensor, "n dim"]:
        if input.shape[-2:] != (64, 64):
            input = F.interpolate(input, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        return super().forward(input * 2 - 1)


class Classifier(nn.Module):
    """Residual CNN over `classes`; returns logits."""

    def __init__(self, classes: int, width: int = 32, dropout: float = 0.2):
        super().__init__()
        self.features = Features(width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.features.out, classes))

    def forward(self, images: Images) -> Float[Tensor, "n classes"]:
        return self.head(self.features(images))


class Words:
    """Tokenizer of whole words, unlike the model's byte pairs. Index 0 pads, 1 stands for unknown words."""

    def __init__(self, words: Sequence[str], length: int = 16):
        self.words, self.length = tuple(words), length
        self.index = {word: i + 2 for i, word in enumerate(self.words)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [[self.index.get(w, 1) for w in re.findall(r"[a-z0-9]+", t.lower())][: self.length] for t in texts]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"length": self.length, "words": self.words}))

    @classmethod
    def load(cls, path: Path) -> "Words":
        return cls(**json.loads(path.read_text()))


class JudgeCLIP(nn.Module):
    """Image CNN and recurrent text encoder with a shared space; mini's CLIP score is the cosine of their outputs."""

    def __init__(self, vocabulary: int, width: int = 24, dim: int = 96):
        super().__init__()
        self.features = Features(width)
        self.to_image = nn.Linear(self.features.out, dim)
        self.embedding = nn.Embedding(vocabulary + 2, dim, padding_idx=0)
        self.read = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.to_text = nn.Linear(2 * dim, dim)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def image(self, images: Images) -> Float[Tensor, "n dim"]:
        """Embed images in [0, 1] as unit vectors."""
        return F.normalize(self.to_image(self.features(images)).float(), dim=-1)

    def text(self, ids: Tensor) -> Float[Tensor, "b dim"]:
        """Embed word indices (see `Words`) as unit vectors."""
        said = (ids > 0).unsqueeze(-1).float()
        states = self.read(self.embedding(ids))[0]
        return F.normalize(self.to_text((states * said).sum(1) / said.sum(1).clamp(min=1)).float(), dim=-1)
