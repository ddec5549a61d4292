"""Train mini's judges on augmented artwork, with whole artists held out, and measure them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.mini.nets import JudgeCLIP, SceneNet, Words, objects_in
from efface.training.checkpoints import State
from experiments import network
from experiments.mini.artwork import HELD_OUT, SETS
from experiments.mini.captions import captions, vocabulary
from experiments.mini.grounds import GROUNDS
from experiments.mini.nouns import NAMES
from experiments.mini.scenes import STYLE_NAMES, Scenes, pool

COUNT = 20_480  # scenes
SEEN = {art.name for art in SETS} - set(HELD_OUT)


def learning_pool(folder: Path) -> Scenes:
    """Return scenes by the artists the judges may see, tinted widely."""
    return pool(folder / "art", COUNT, 11, sets=SEEN, jitter=0.4, store=folder / "scenes")


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


def train_scenes(scenes: Scenes, folder: Path, steps: int, batch: int = 64) -> State:
    """Train the judge of scenes; resumes from `folder`/judge_scenes.safetensors.

    Colours are shuffled or dropped in half of each batch, so that they do not decide what an object is; style and
    ground are learned from the other half.
    """
    torch.manual_seed(5)
    judge, half = SceneNet(len(NAMES), len(STYLE_NAMES), len(GROUNDS)), batch // 2

    def loss(g: torch.Generator, _: int) -> Tensor:
        chosen = scenes.rows(torch.randint(len(scenes), (batch,), generator=g))
        images = chosen.pixels.float() / 255
        images = torch.cat([_noise(images[:half], g, recolour=True), _noise(images[half:], g, recolour=False)])
        with network.bfloat16():
            seen = judge(images)
        shown = torch.zeros(batch, len(NAMES)).scatter_(1, chosen.first[:, None], 1.0)
        two = chosen.second >= 0
        shown[two] = (shown[two] + F.one_hot(chosen.second[two], len(NAMES))) / 2
        value = F.cross_entropy(seen.cells.float(), chosen.cells.long(), label_smoothing=0.02)
        value = value - 0.5 * (shown * objects_in(seen.cells).clamp(min=1e-6).log()).sum(1).mean()
        style, ground, plain = chosen.style[half:], chosen.ground[half:], chosen.style[half:] == 0
        value = value + 0.5 * F.cross_entropy(seen.styles[half:].float(), style, label_smoothing=0.05)
        return value + 0.5 * F.cross_entropy(seen.grounds[half:][plain].float(), ground[plain], label_smoothing=0.05)

    path = folder / "judge_scenes.safetensors"
    return network.train(judge, path, loss, steps, lr=2e-3, weight_decay=0.05, decay=0.998, seed=5)


def train_clip(scenes: Scenes, folder: Path, steps: int, batch: int = 128) -> State:
    """Train the judging CLIP; resumes from `folder`/judge_clip.safetensors."""
    words = Words(vocabulary())
    words.save(folder / "judge_words.json")
    torch.manual_seed(7)
    clip = JudgeCLIP(len(words.words))

    def loss(g: torch.Generator, _: int) -> Tensor:
        chosen = scenes.rows(torch.randint(len(scenes), (batch,), generator=g))
        images = _noise(chosen.pixels.float() / 255, g, recolour=False)
        with network.bfloat16():
            image, text = clip.image(images), clip.text(words(captions(chosen, g, empty=0.0)))
        logits, own = clip.scale.exp().clamp(max=50) * text @ image.T, torch.arange(batch)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    path = folder / "judge_clip.safetensors"
    return network.train(clip, path, loss, steps, lr=2e-3, weight_decay=0.05, decay=0.998, seed=7)
