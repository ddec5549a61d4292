"""Solvers: diffusers' schedulers by short names."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.errors import BadInput, unknown
from efface.util.solvers import SOLVERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def make(pipe: "DiffusionPipeline", name: str = "") -> Any:
    """Return a new scheduler with the pipeline's noise schedule: its own kind for "", else by name.

    Latents are never clipped to [-1, 1], which diffusers does by default for "ddim" and "ddpm". Raises `UnknownName`.
    """
    own: Any = pipe.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    if not name:
        return copy.deepcopy(own)
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    import diffusers

    config = {"clip_sample": False, **own.config}
    with _calm():
        return getattr(diffusers, SOLVERS[name]).from_config(config)


def ready(pipe: "DiffusionPipeline", name: str, steps: int, device: torch.device) -> Any:
    """Return a new scheduler with its timesteps set.

    Raises `UnknownName`, and `BadInput` for steps that the solver cannot take: PNDM starts with four of Runge-Kutta.
    """
    scheduler = make(pipe, name)
    try:
        with _calm():
            scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        kind = name or type(scheduler).__name__
        raise BadInput(f"the solver {kind} cannot take {steps} steps: give more (pndm needs 4), or another") from error
    return scheduler


@contextmanager
def _calm() -> Iterator[None]:
    """Silence the numpy 2 warning about how some schedulers pass tensors to numpy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


def noise(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Return standard normal noise (b, *shape) on the CPU in fp32, one generator per image."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
