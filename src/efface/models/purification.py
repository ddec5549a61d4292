"""Concept purification: remove a concept from a given image by DDIM inversion and sampling.

Hong, Lee and Woo 2024, https://arxiv.org/abs/2312.12807, "Concept Purification" and figure 10.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput
from efface.models.inversion import invert
from efface.models.model import Model


@torch.no_grad()
def purify(
    model: Model,
    images: Float[Tensor, "b 3 h w"],
    prompt: str = "",
    steps: int = 35,
    guidance: float = 1.0,
    depth: float = 1.0,
    source: str | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Invert images in [0, 1] by DDIM and generate them again, both with the edited `model`.

    prompt: "" or the concept; the paper reports both.
    steps: of a whole trajectory ("T = 35").
    guidance: guidance scale of the generation; the inversion has none.
    depth: share of the steps to invert, 0 to 1; 1 is pure noise.
    source: text under which images are inverted; None is `prompt`. With another one the way back edits the image.
    Raises: BadInput for steps or depth outside their range.
    """
    if not 0 <= depth <= 1:
        raise BadInput(f"depth must be between 0 and 1, got {depth}")
    schedule = model.family.schedule
    times = schedule.times(steps).tolist()
    turn = round(depth * (steps - 1))
    z = model.encode_images(images)
    texts = [prompt if source is None else source, prompt]
    (given, c), null = (model.encode([text]).float() for text in texts), model.null().float()
    up = [(None, times[0]), *pairwise(times[: turn + 1])]
    z = invert(schedule, z, up, lambda x, t: model.eps(x, t, given))
    for high, low in pairwise(times[turn::-1]):
        cond, uncond = model.denoise(z, torch.tensor(high, device=z.device), c, null)
        z = schedule.step(z, uncond + guidance * (cond - uncond), high, low)
    clean = schedule.step(z, model.eps(z, times[0], c), times[0], None)
    return model.decode(clean)
