"""Networks of the judge: a small residual CNN classifier, and a CLIP of another design than the model's own."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class Scene(NamedTuple):
    """Hold what a judge sees in images, as logits."""

    cells: Float[Tensor, "n classes+1 8 8"]  # what covers each part of an 8 × 8 map; 0 is the ground
    styles: Float[Tensor, "n styles"]
    grounds: Float[Tensor, "n grounds"]


class SceneNet(nn.Module):
    """Residual CNN that says what is where in an image of 64 × 64, in which style, on which ground."""

    def __init__(self, classes: int, styles: int, grounds: int, width: int = 32, dropout: float = 0.1):
        super().__init__()
        wide = 4 * width
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1),
            _Block(2 * width, wide, 2), _Block(wide, wide, 1), _Block(wide, wide, 1),
        )  # fmt: skip
        self.cells = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(wide, classes + 1, 1))
        self.styles, self.grounds = nn.Linear(wide, styles), nn.Linear(wide, grounds)

    def forward(self, images: Images) -> Scene:
        """Look at images in [0, 1], of any size."""
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        seen = self.trunk(images * 2 - 1)
        pooled = seen.mean((2, 3))
        return Scene(self.cells(seen), self.styles(pooled), self.grounds(pooled))


def objects_in(cells: Float[Tensor, "n some 8 8"]) -> Float[Tensor, "n classes"]:
    """Return each object's share of the part of the image that objects cover; rows sum to 1."""
    mass = cells.float().softmax(1)[:, 1:].sum((2, 3))
    return mass / mass.sum(1, keepdim=True)


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
