"""The digits model: a prompt is one token of 8 numbers; a UNet on pixels predicts v."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from efface.context import Context
from efface.digits.classes import CLASSES
from efface.digits.net import DigitUNet
from efface.models import text
from efface.models.family import Family
from efface.models.schedules import Diffusion
from efface.util.files import safetensors_meta


@dataclass(frozen=True, eq=False)
class Digits(Family):
    """View a digits pipeline."""

    TITLE: ClassVar[str] = "the digits model"
    BLOCKS: ClassVar[Mapping[str, str]] = {word: word for word in ("down1", "down2", "down3", "mid1", "mid2", "up1")}
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {
        "full": lambda name: True,
        "x": lambda name: name.startswith("unet.context."),
        "embedding": lambda name: name == "text_encoder.table.weight",
    }

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline has a `DigitUNet`."""
        return isinstance(getattr(pipe, "unet", None), DigitUNet)

    @classmethod
    def own_file(cls, path: Path, dtype: torch.dtype) -> Any:
        """Open a file that `python -m experiments.digits train` wrote; its header names the data set."""
        if safetensors_meta(path).get("dataset") not in CLASSES:
            return None
        from efface.digits.pipeline import load

        return load(path, dtype)

    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts: a class name, 8 numbers, or ""."""
        read, device = self.pipe.tokenizer(prompts), self.denoiser.device
        tokens = self.pipe.text_encoder(read.input_ids.to(device), read.vectors.to(device))
        return Context(tokens).to(self.denoiser.dtype)

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Raise `BadModel`: a prompt is one vector and has no word tokens."""
        return (text.Tokens((), 0, 0),)

    @property
    def width(self) -> int:
        """Return the number of values in a prompt, 8."""
        return self.denoiser.config.cross_attention_dim

    @cached_property
    def schedule(self) -> Diffusion:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the scheduler's noise schedule."""
        return Diffusion.of(self.pipe.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (1, 28, 28): latents are pixels."""
        config = self.denoiser.config
        return config.in_channels, config.sample_size, config.sample_size

    def text_weights(self) -> list[str]:
        """Return no names: the token passes through layers with a bias and a non-linearity."""
        return []

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the network's keyword arguments for a context."""
        return {"encoder_hidden_states": c.tokens}

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the network's keyword arguments."""
        return Context(arguments["encoder_hidden_states"])
