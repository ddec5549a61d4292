"""What families with a UNet share: cross-attention to the text, blocks, parameter sets, latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from efface.context import Context
from efface.errors import BadModel
from efface.models.family import Family
from efface.models.schedules import Diffusion
from efface.util.ranges import short

LARGEST = 1024  # of a side of the latents: 8192 pixels
ENDS = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")


@dataclass(frozen=True, eq=False)
class UNetFamily(Family):
    """Base class of families with a `UNet2DConditionModel`."""

    BLOCKS: ClassVar[Mapping[str, str]] = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {
        "x": lambda name: ".attn2." in name,
        "x-strict": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
        "u": lambda name: ".attn2." not in name and not name.startswith(ENDS),
        "notime": lambda name: not name.startswith(ENDS),
        "u-linear": lambda name: ".attn2." not in name and "norm" not in name,
        "selfattn": lambda name: ".attn1." in name,
        "attn": lambda name: ".attn1." in name or ".attn2." in name,
        "to_out": lambda name: ".to_out." in name,
        "full": lambda name: True,
        "embedding": lambda name: name.endswith("token_embedding.weight"),
    }

    @property
    def width(self) -> int:
        """Return the number of channels of a token vector as the denoiser reads it."""
        return self.denoiser.config.cross_attention_dim

    @cached_property
    def schedule(self) -> Diffusion:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the scheduler's noise schedule."""
        return Diffusion.of(self.pipe.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents."""
        config = self.denoiser.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def check(self) -> None:
        """Check the sample size and the channels of the latents. Raises `BadModel`."""
        config, vae = self.denoiser.config, getattr(self.pipe, "vae", None)
        size: Any = config.sample_size
        sides = size if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
            known = f"a whole number from 1 to {LARGEST}, or two"
            raise BadModel(f"the sample_size in the UNet's configuration is {short(size)}: it must be {known}")
        channels = getattr(getattr(vae, "config", None), "latent_channels", config.in_channels)
        if config.in_channels != channels:
            raise BadModel(
                f"the UNet reads {config.in_channels} channels and the autoencoder has {channels}: efface needs a "
                "text-to-image model (those for inpainting and editing read more)"
            )

    def text_weights(self) -> list[str]:
        """Return the names of the key and value weights of cross-attention, in module order."""
        return [
            f"unet.{name}.{which}.weight"
            for name, module in self.denoiser.named_modules()
            if getattr(module, "is_cross_attention", False)
            for which in ("to_k", "to_v")
        ]

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the UNet's keyword arguments for a context."""
        return {"encoder_hidden_states": c.tokens}

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the UNet's keyword arguments."""
        return Context(arguments["encoder_hidden_states"])
