"""Train mini's judges on augmented artwork, with whole artists held out, and measure them."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.mini.nets import Classifier, JudgeCLIP, Words
from efface.training.checkpoints import State
from experiments import network
from experiments.mini.artwork import HELD_OUT, SETS, drawings
from experiments.mini.captions import caption
from experiments.mini.nouns import NAMES
from experiments.mini.pictures import STYLE_NAMES, Pictures, make
from experiments.mini.text import corpus, matches
from experiments.mini.unet import Sampler

SEEN = {art.name for art in SETS} - set(HELD_OUT)


def learning_pool(folder: Path, copies: int = 8) -> Pictures:
    """Pictures by the artists the judges may see, placed and tinted widely."""
    return make(drawings(folder), copies, seed=11, strength=1.7, jitter=0.5, sets=SEEN)


def _noise(x: Tensor, g: torch.Generator, recolour: bool) -> Tensor:
    """Blur, grain, contrast and a grey patch; colours are shuffled or dropped where they must not decide."""
    b = len(x)
    chance = lambda p: torch.rand(b, 1, 1, 1, generator=g) < p  # noqa: E731
    if recolour:
        shuffled = x[:, torch.randperm(3, generator=g)]
        x = torch.where(chance(0.12), shuffled, x)
        x = torch.where(chance(0.08), x.mean(1, keepdim=True).expand_as(x), x)
        x = torch.where(chance(0.04), 1 - x, x)
    soft = F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, 1)
    x = torch.where(chance(0.35), soft, x)
    gain = 1 + 0.3 * (torch.rand(b, 1, 1, 1, generator=g) - 0.5)
    x = (x - 0.5) * gain + 0.5 + 0.1 * (torch.rand(b, 3, 1, 1, generator=g) - 0.5)
    x = x + torch.randn(x.shape, generator=g) * 0.06 * torch.rand(b, 1, 1, 1, generator=g)
    top, left = (torch.randint(0, 48, (b, 1, 1), generator=g) for _ in range(2))
    rows, columns = torch.arange(64).view(1, 64, 1), torch.arange(64).view(1, 1, 64)
    patch = (rows >= top) & (rows < top + 16) & (columns >= left) & (columns < left + 16)
    return torch.where(patch.unsqueeze(1) & chance(0.3), torch.full_like(x, 0.5), x).clamp(0, 1)


def train_classifier(
    of: Literal["objects", "styles"], pictures: Pictures, folder: Path, steps: int, batch: int = 64
) -> State:
    """Train the object or the style judge; resumes from `folder`/judge_<of>.safetensors."""
    torch.manual_seed(5)
    objects = of == "objects"
    judge = Classifier(len(NAMES) if objects else len(STYLE_NAMES), width=32 if objects else 16)
    sample, labels = Sampler(pictures), getattr(pictures, of)

    def loss(g: torch.Generator) -> Tensor:
        rows, _ = sample(batch, g)
        images = _noise(pictures.pixels[rows].float() / 255, g, recolour=objects)
        with network.bfloat16():
            logits = judge(images)
        return F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)

    path = folder / f"judge_{of}.safetensors"
    return network.train(judge, path, loss, steps, lr=2e-3, weight_decay=0.05, decay=0.998, seed=5)


def train_clip(pictures: Pictures, folder: Path, steps: int, batch: int = 128) -> State:
    """Train the judging CLIP; resumes from `folder`/judge_clip.safetensors."""
    words = Words(sorted({word for text in corpus() for word in text.split()}))
    words.save(folder / "judge_words.json")
    torch.manual_seed(7)
    clip = JudgeCLIP(len(words.words))
    sample = Sampler(pictures)

    def loss(g: torch.Generator) -> Tensor:
        rows, cells = sample(batch, g)
        asked = [caption(o, s, g, empty=0) for o, s in cells]
        images = _noise(pictures.pixels[rows].float() / 255, g, recolour=False)
        with network.bfloat16():
            image, text = clip.image(images), clip.text(words([c.text for c in asked]))
        logits = clip.scale.exp().clamp(max=50) * text @ image.T
        target = matches(asked, pictures.objects[rows], pictures.styles[rows])
        back = target.T / target.T.sum(1, keepdim=True).clamp(min=1e-6)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, back)) / 2

    path = folder / "judge_clip.safetensors"
    return network.train(clip, path, loss, steps, lr=2e-3, weight_decay=0.05, decay=0.998, seed=7)
