"""Train mini's judges on augmented artwork, with whole artists held out, and measure them."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.mini.artwork import HELD_OUT, SETS, drawings
from efface.mini.captions import caption
from efface.mini.fitting import Fitting
from efface.mini.nets import Classifier, JudgeCLIP, Words
from efface.mini.nouns import NAMES
from efface.mini.pictures import STYLE_NAMES, Pictures, make
from efface.mini.text import corpus, matches
from efface.mini.unet import Sampler

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
) -> Fitting:
    """Train the object or the style judge; resumes from `folder`/judge_<of>.safetensors."""
    torch.manual_seed(5)
    objects = of == "objects"
    judge = Classifier(len(NAMES) if objects else len(STYLE_NAMES), width=32 if objects else 16)
    fitting = Fitting(judge, folder / f"judge_{of}.safetensors", 2e-3, weight_decay=0.05, ema=0.998)
    draw, labels = Sampler(pictures), getattr(pictures, of)

    def loss(step: int, g: torch.Generator) -> Tensor:
        rows, _ = draw(batch, g)
        images = _noise(pictures.pixels[rows].float() / 255, g, recolour=objects)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(images)
        return F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)

    fitting.run(loss, steps, seed=5, log=folder / f"judge_{of}.jsonl")
    return fitting


def train_clip(pictures: Pictures, folder: Path, steps: int, batch: int = 128) -> Fitting:
    """Train the judging CLIP; resumes from `folder`/judge_clip.safetensors."""
    words = Words(sorted({word for text in corpus() for word in text.split()}))
    words.save(folder / "judge_words.json")
    torch.manual_seed(7)
    fitting = Fitting(clip := JudgeCLIP(len(words.words)), folder / "judge_clip.safetensors", 2e-3, 0.05, ema=0.998)
    draw = Sampler(pictures)

    def loss(step: int, g: torch.Generator) -> Tensor:
        rows, cells = draw(batch, g)
        said = [caption(o, s, g, empty=0) for o, s in cells]
        images = _noise(pictures.pixels[rows].float() / 255, g, recolour=False)
        with torch.autocast("cpu", torch.bfloat16):
            image, text = clip.image(images), clip.text(words([c.text for c in said]))
        logits = clip.scale.exp().clamp(max=50) * text @ image.T
        target = matches(said, pictures.objects[rows], pictures.styles[rows])
        back = target.T / target.T.sum(1, keepdim=True).clamp(min=1e-6)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, back)) / 2

    fitting.run(loss, steps, seed=7, log=folder / "judge_clip.jsonl")
    return fitting


@torch.inference_mode()
def hits(judge: nn.Module, pictures: Pictures, labels: Tensor, k: int = 1) -> Tensor:
    """Say for every picture whether its label is among the judge's first k."""
    found = []
    for start in range(0, len(pictures), 256):
        top = judge(pictures.pixels[start : start + 256].float() / 255).topk(k, dim=-1).indices
        found.append((top == labels[start : start + 256, None]).any(1))
    return torch.cat(found)
