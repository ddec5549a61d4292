"""Fisher information of weights: its diagonal, estimated from few timesteps, or read from a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from efface.errors import BadFile, BadInput, BadModel
from efface.models.model import Model
from efface.util.files import check_safetensors, opened

Weights = Mapping[str, Tensor]


def add_squared_sum(into: dict[str, Tensor], gradients: Iterable[Weights], count: int, total: int) -> None:
    """Add to `into` an unbiased estimate of (Σ_t g_t)², the sum over all `total` timesteps, from `count` of them.

    The timesteps must be drawn uniformly without repetition. With S = Σ_k g_k and Q = Σ_k g_k² over the drawn ones,
    (Σ_t g_t)² = Σ_t g_t² + Σ_{s≠t} g_s g_t. A timestep is drawn with probability m/T and an ordered pair of two with
    m (m−1) / (T (T−1)), so that

        E[T/m Q] = Σ_t g_t²    and    E[T (T−1) / (m (m−1)) (S² − Q)] = Σ_{s≠t} g_s g_t.

    Noise that is drawn anew for every timestep makes g_t random and independent of g_s: both lines then hold for the
    expectations, as they do for the sum over all timesteps. The estimate equals the square when all are drawn, and can
    be negative otherwise. (T/m)² S², the square of the extrapolated sum, would weigh Σ_t g_t² by T/m too much.

    into: fp32, changed in place. gradients: one mapping per timestep; a missing name counts as zero.
    count: m, 2 or more, or equal to `total`.
    """
    single = total / count
    pairs = single if total == 1 else total * (total - 1) / (count * (count - 1))
    sums: dict[str, Tensor] = {}
    for gradient in gradients:
        for name, g in gradient.items():
            into[name].add_(g.float().square(), alpha=single - pairs)
            sums[name] = sums[name].add_(g) if name in sums else g.float().clone()
    for name, s in sums.items():
        into[name].add_(s.square(), alpha=pairs)


def places(path: str, model: Model, weights: Weights) -> dict[str, str]:
    """Return the key of each weight in a file of Fisher information, from the file's header alone.

    The keys are efface's own names ("unet.conv_in.weight"), or those of Stable Diffusion's original code, with or
    without their "model." in front ("diffusion_model.input_blocks.0.0.weight").

    Raises: BadFile for a file that is missing, damaged or a pickle, BadInput for a missing weight or another shape.
    """
    header = check_safetensors(Path(path))
    found = {name: next((key for key in _keys(model, name) if key in header), "") for name in weights}
    if missing := [name for name, key in found.items() if not key]:
        raise BadInput(
            f"the Fisher information in {path} lacks {len(missing)} of {len(weights)} trained weights, "
            f"such as {missing[0]}: its keys should be names of this model's weights, but are like "
            f"{next(iter(header), 'none')}"
        )
    for name, key in found.items():
        if (shape := header[key]["shape"]) != list(weights[name].shape):
            raise BadInput(
                f"the Fisher information in {path} is of another model: {key} has shape {shape}, "
                f"the weight {list(weights[name].shape)}"
            )
    return found


def _keys(model: Model, name: str) -> tuple[str, ...]:
    try:
        key = model.family.original_key(name, {model.family.DENOISER: model.denoiser.config}).key
    except (BadModel, KeyError):
        return (name,)
    return name, key, key.removeprefix("model.")


def read(path: str, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the Fisher information at some keys of a file by weight name, fp32.

    Raises: BadFile for a damaged file or values that are negative or not numbers.
    """
    with opened(path) as file:
        found = {name: file.get_tensor(key).float() for name, key in keys.items()}
    for name, value in found.items():
        if not bool(((value >= 0) & (value < torch.inf)).all()):
            raise BadFile(f"{path} is no Fisher information: {keys[name]} has values that are negative or no numbers")
    return found
