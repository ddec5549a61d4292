"""Train the denoiser and the judges of a data set; every part resumes to the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from efface.digits.classes import classes
from efface.digits.net import Classifier, DigitUNet
from efface.digits.pipeline import noise_schedule
from efface.digits.prompts import spread
from efface.util.files import save_safetensors
from experiments import network
from experiments.digits.data import Pictures, load, split

STEPS = {"unet": 6000, "judge": 2500, "judge2": 2500}
FASHION = {**STEPS, "unet": 2000}
BATCH = 128
DROP = 0.1  # share of training pictures without a prompt, so that the empty prompt means any class


def steps_of(dataset: str) -> dict[str, int]:
    """Return how many steps each of a data set's networks is trained for."""
    return FASHION if dataset == "fashion" else STEPS


def train_unet(pictures: Pictures, codes: Tensor, folder: Path, steps: int = STEPS["unet"]) -> None:
    """Train the denoiser into `folder`/unet.safetensors: the v-loss, unweighted, a tenth of the prompts dropped."""
    torch.manual_seed(1)
    unet = DigitUNet()
    schedule = noise_schedule()
    add_noise: Any = schedule.add_noise
    velocity: Any = schedule.get_velocity

    def loss(g: torch.Generator) -> Float[Tensor, ""]:
        rows = torch.randint(len(pictures), (BATCH,), generator=g)
        x, c = pictures.latents(rows), codes[pictures.labels[rows]]
        c = c * (torch.rand(BATCH, 1, generator=g) >= DROP)
        t, eps = torch.randint(1000, (BATCH,), generator=g), torch.randn(x.shape, generator=g)
        with network.bfloat16():
            predicted = unet(add_noise(x, eps, t), t, c[:, None])[0]
        return F.mse_loss(predicted.float(), velocity(x, eps, t))

    network.train(unet, folder / "unet.safetensors", loss, steps, lr=2e-3)


def train_judge(pictures: Pictures, folder: Path, name: str = "judge", steps: int = STEPS["judge"]) -> None:
    """Train a classifier into `folder`/<name>.safetensors on shifted, blurred and noisy pictures."""
    seed = 20 + list(STEPS).index(name)
    torch.manual_seed(seed)
    judge = Classifier()

    def loss(g: torch.Generator) -> Float[Tensor, ""]:
        rows = torch.randint(len(pictures), (BATCH,), generator=g)
        with network.bfloat16():
            logits = judge(_worn(pictures.latents(rows), g))
        return F.cross_entropy(logits.float(), pictures.labels[rows], label_smoothing=0.02)

    path = folder / f"{name}.safetensors"
    network.train(judge, path, loss, steps, lr=2e-3, weight_decay=0.02, decay=0.995, seed=seed)


def _worn(x: Float[Tensor, "b 1 28 28"], g: torch.Generator) -> Float[Tensor, "b 1 28 28"]:
    """Turn, shift and scale pictures a little, blur some, and add grain."""
    b = len(x)
    turn, size = 0.5 * torch.rand(b, generator=g) - 0.25, 0.9 + 0.2 * torch.rand(b, generator=g)
    shift = 0.2 * torch.rand(b, 2, generator=g) - 0.1
    cos, sin = turn.cos() * size, turn.sin() * size
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(b, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    x = F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside is black
    soft = F.avg_pool2d(F.pad(x, (1,) * 4, value=-1.0), 3, 1)
    x = torch.where(torch.rand(b, 1, 1, 1, generator=g) < 0.2, soft, x)
    return x + 0.2 * torch.rand(b, 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)


@torch.inference_mode()
def accuracy(judge: nn.Module, pictures: Pictures) -> tuple[int, int]:
    """Return (right, all) of a judge on pictures."""
    rows: Int[Tensor, " n"] = torch.arange(len(pictures))
    guesses = torch.cat([judge(pictures.latents(part)).argmax(1) for part in rows.split(500)])
    return int((guesses == pictures.labels).sum()), len(pictures)


def export(folder: Path, dataset: str, codes: Tensor, held: Pictures, into: Path) -> Path:
    """Write the averaged networks of a finished training to `into`/<dataset>.safetensors, in half precision."""
    nets: dict[str, nn.Module] = {"unet": DigitUNet(), "judge": Classifier(), "judge2": Classifier()}
    tensors: dict[str, Tensor] = {"codes": codes}
    accuracies = {}
    for name, net in nets.items():
        network.load_averaged(net, folder / f"{name}.safetensors")
        if name != "unet":
            accuracies[name] = accuracy(net, held)
        for key, value in net.state_dict().items():
            tensors[f"{name}.{key}"] = value.half() if value.is_floating_point() else value
    path, steps = into / f"{dataset}.safetensors", steps_of(dataset)
    save_safetensors(
        path, tensors, {"dataset": dataset, "accuracy": json.dumps(accuracies), "steps": json.dumps(steps)}
    )
    return path


def train(dataset: str, folder: Path, into: Path, data: Path | None = None) -> Path:
    """Train everything a data set needs and write its weights; a stopped training goes on where it was.

    folder: for checkpoints. into: for the weights. data: where the data set's files are, see `data.load`.
    """
    learn, held = split(load(dataset, data))
    codes = spread(len(classes(dataset)))
    for path in (folder, into):
        path.mkdir(parents=True, exist_ok=True)
    steps = steps_of(dataset)
    train_unet(learn, codes, folder, steps["unet"])
    train_judge(learn, folder, "judge", steps["judge"])
    train_judge(learn, folder, "judge2", steps["judge2"])
    return export(folder, dataset, codes, held, into)
