"""Train the denoiser with its table of prompts, and the judges; every part resumes to the same weights."""

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
from efface.digits.prompts import NO_CLASS, Words
from efface.util.files import load_safetensors, save_safetensors
from experiments import network
from experiments.digits.data import Pictures, load, split

STEPS = {"model": 6000, "judge": 2500, "judge2": 2500}
FASHION = {**STEPS, "model": 2000}
BATCH = 128
DROP = 0.1  # share of training pictures without a prompt, so that the empty prompt means any class


def steps_of(dataset: str) -> dict[str, int]:
    """Return how many steps each of a data set's networks is trained for."""
    return FASHION if dataset == "fashion" else STEPS


def networks(dataset_classes: int, seed: int = 0) -> nn.ModuleDict:
    """Return the untrained denoiser and its table of prompts."""
    torch.manual_seed(1 + seed)
    return nn.ModuleDict({"unet": DigitUNet(), "text_encoder": Words(dataset_classes)})


def train_model(pictures: Pictures, count: int, folder: Path, steps: int = STEPS["model"], seed: int = 0) -> None:
    """Train denoiser and table together into `folder`/model.safetensors; count: of classes.

    The v-loss, unweighted, a tenth of the prompts dropped.
    """
    model, schedule = networks(count, seed), noise_schedule()
    unet, words = model["unet"], model["text_encoder"]
    add_noise: Any = schedule.add_noise
    velocity: Any = schedule.get_velocity

    def loss(g: torch.Generator, _: int) -> Float[Tensor, ""]:
        rows = torch.randint(len(pictures), (BATCH,), generator=g)
        x, kept = pictures.latents(rows), torch.rand(BATCH, generator=g) >= DROP
        ids = torch.where(kept, pictures.labels[rows], NO_CLASS)[:, None]
        t, eps = torch.randint(1000, (BATCH,), generator=g), torch.randn(x.shape, generator=g)
        with network.bfloat16():
            predicted = unet(add_noise(x, eps, t), t, words(ids))[0]
        return F.mse_loss(predicted.float(), velocity(x, eps, t))

    network.train(model, folder / "model.safetensors", loss, steps, lr=2e-3, seed=seed)


def train_judge(pictures: Pictures, folder: Path, name: str = "judge", steps: int = STEPS["judge"]) -> None:
    """Train a classifier into `folder`/<name>.safetensors on shifted, blurred and noisy pictures."""
    seed = 20 + list(STEPS).index(name)
    torch.manual_seed(seed)
    judge = Classifier()

    def loss(g: torch.Generator, _: int) -> Float[Tensor, ""]:
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


def export(folder: Path, dataset: str, held: Pictures, into: Path, judges: Path | None = None, seed: int = 0) -> Path:
    """Write the averaged networks of a finished training to `into`/<dataset>.safetensors, in half precision.

    The table of prompts stays in float32. judges: a file whose judges are taken; by default those in `folder`.
    """
    names = classes(dataset)
    steps, accuracies, tensors = dict(steps_of(dataset)), {}, {}
    model = network.load_averaged(networks(len(names)), folder / "model.safetensors")
    tensors |= {
        key: value if key.startswith("text_encoder.") else _half(value) for key, value in model.state_dict().items()
    }
    for name in ("judge", "judge2"):
        if judges is None:
            net = network.load_averaged(Classifier(len(names)), folder / f"{name}.safetensors")
            accuracies[name] = accuracy(net, held)
            tensors |= {f"{name}.{key}": _half(value) for key, value in net.state_dict().items()}
    if judges is not None:
        stored, meta = load_safetensors(judges)
        tensors |= {key: value for key, value in stored.items() if key.startswith("judge")}
        accuracies, steps = json.loads(meta["accuracy"]), {**json.loads(meta["steps"]), "model": steps["model"]}
    about = {"dataset": dataset, "accuracy": json.dumps(accuracies), "steps": json.dumps(steps), "seed": str(seed)}
    path = into / f"{dataset}.safetensors"
    save_safetensors(path, tensors, about)
    return path


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def train(
    dataset: str, folder: Path, into: Path, data: Path | None = None, seed: int = 0, judges: Path | None = None
) -> Path:
    """Train everything a data set needs and write its weights; a stopped training goes on where it was.

    folder: for checkpoints. into: for the weights. data: where the data set's files are, see `data.load`.
    seed: of denoiser and table. judges: weights whose judges are taken, so that several denoisers have the same.
    """
    learn, held = split(load(dataset, data))
    for path in (folder, into):
        path.mkdir(parents=True, exist_ok=True)
    steps = steps_of(dataset)
    if judges is None:
        for name in ("judge", "judge2"):
            train_judge(learn, folder, name, steps[name])
    train_model(learn, len(classes(dataset)), folder, steps["model"], seed)
    return export(folder, dataset, held, into, judges, seed)
