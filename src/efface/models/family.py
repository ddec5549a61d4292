"""Family: what differs between kinds of pipelines. Each file in `families/` registers one under its file name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.context import Context
from efface.errors import BadModel
from efface.models import schedulers
from efface.models.files.original_layout import Configs, Shapes, Stored
from efface.models.schedules import NoiseSchedule
from efface.models.text import Tokens

Time = Tensor | float | int  # a timestep, 0 to total - 1: one, or one per image
VAE_AREA = 16384  # latent pixels decoded or encoded at once: 4 images of 512 pixels, 64 of 64 (of factor 4)


@dataclass(frozen=True, eq=False)
class Family(ABC):
    """Base class of model families: a view of one pipeline, with all that differs between families.

    pipe: the diffusers pipeline, or one with the same parts.
    """

    pipe: Any

    KIND: ClassVar[str] = "families"
    TITLE: ClassVar[str] = ""  # name in messages
    DENOISER: ClassVar[str] = "unet"  # the part that predicts; its weights' names start with this
    PARTS: ClassVar[tuple[str, ...]] = (
        "unet",
        "text_encoder",
        "vae",
    )  # those with weights, in the order of a model's id
    BLOCKS: ClassVar[Mapping[str, str]] = {}  # name of a block of the denoiser -> part of its weights' names
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {"full": lambda name: True}  # parameter sets for training
    GUIDANCE: ClassVar[float] = 7.5  # classifier-free guidance scale where none is given; 1: none
    FAST: ClassVar[str] = "dpm++"  # the solver that makes images to train on, in few steps

    # --- recognition ---
    @classmethod
    @abstractmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline is of this family."""

    # --- single files ---
    @classmethod
    def own_file(cls, path: Path, dtype: torch.dtype) -> Any:
        """Return the pipeline of a file in a format that only this family has; None for any other file.

        Raises `BadFile` and `BadModel` for a file of that format that cannot be read.
        """
        return None

    @classmethod
    def reads(cls, shapes: Shapes) -> bool:
        """Return whether tensors of these names and shapes are a checkpoint of this family in its original layout."""
        return False

    @classmethod
    def configs(cls, shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> Configs:
        """Derive the configurations of a pipeline's parts from a checkpoint, and its model_index ("model_index").

        A tokenizer's has {vocab_size, model_max_length, pad_token}. prediction: what the denoiser predicts; by
        default from the header or a marker tensor, else the family's usual one. Raises `BadModel`, and `KeyError`
        for a tensor that is not there.
        """
        raise BadModel(f"{cls.TITLE} has no original layout")

    @classmethod
    def original_key(cls, name: str, configs: Configs) -> Stored:
        """Return where a weight is stored; name: "unet.….weight", as in the parts' state dicts."""
        raise BadModel(f"{cls.TITLE} has no original layout")

    @classmethod
    def part_of(cls, key: str, configs: Configs) -> str:
        """Return the part a stored tensor is a weight of, "" for one of no part."""
        return ""

    @classmethod
    def unread(cls, key: str, configs: Configs) -> bool:
        """Return whether a stored tensor is a weight of a part that this family does not read; see also `unused`."""
        return False

    # --- text ---
    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts as the pipeline does, differentiably; warns when a prompt is cut off."""

    def null(self) -> Context:
        """Return the unconditional context, used when there is no negative prompt, one row."""
        return self.encode([""])

    @abstractmethod
    def streams(self, prompt: str) -> tuple[Tokens, ...]:
        """Return a prompt's tokens for each part of `Context.tokens` with its own tokenizer."""

    def text_encoders(self) -> tuple[Any, ...]:
        """Return the text encoders that read one sequence of token ids, whose embedding tables attacks write into.

        The ids are those of the first of `streams`.
        """
        return ()

    def tokenizers(self) -> tuple[Any, ...]:
        """Return the tokenizers of `text_encoders`, which give the same ids up to the end token."""
        return ()

    @property
    @abstractmethod
    def width(self) -> int:
        """Return the number of channels of a token vector as the denoiser reads it."""

    # --- noise ---
    @abstractmethod
    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the denoiser's keyword arguments that carry the context, for `count` images."""

    @abstractmethod
    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the denoiser's keyword arguments: the inverse of `arguments`."""

    def predict(self, x: Float[Tensor, "b ch h w"], t: Time, c: Context) -> Float[Tensor, "b ch h w"]:
        """Return the denoiser's output for x_t, in the dtype of x; c: one context, or one per image."""
        dtype = self.denoiser.dtype
        latents, given = self.inputs(x.to(dtype), t)
        given |= self.arguments(c.expand(len(x)).to(dtype), len(x))
        return self.output(self.denoiser(latents, **given, return_dict=False)[0], x).to(x.dtype)

    def inputs(self, x: Float[Tensor, "b ch h w"], t: Time) -> tuple[Tensor, dict[str, Any]]:
        """Return the denoiser's first argument, the noised latents in its form, and those that carry the timestep."""
        return x, {"timestep": t}

    def inputs_of(self, arguments: Mapping[str, Any]) -> tuple[Float[Tensor, "b ch h w"], Tensor]:
        """Return (x_t, t) in all of the denoiser's arguments by name: the inverse of `inputs`."""
        return arguments["sample"], torch.as_tensor(arguments["timestep"])

    def output(self, out: Tensor, x: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b ch h w"]:
        """Return what the denoiser gave for latents like x in their form; by default it has it."""
        return out

    @property
    @abstractmethod
    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule, and what the output of `predict` means."""

    def eps(self, x: Float[Tensor, "b ch h w"], t: Time, c: Context) -> Float[Tensor, "b ch h w"]:
        """Predict eps for x_t, the noise or for a flow the velocity (see `schedules`); differentiable."""
        return self.schedule.eps(self.predict(x, t, c), x, torch.as_tensor(t, device=x.device))

    def solver(self, name: str, steps: int) -> Any:
        """Return a new diffusers scheduler with its timesteps set; "" is the pipeline's own. Raises `BadInput`."""
        return schedulers.ready(self.pipe, name, steps, self.denoiser.device)

    # --- parts and their names ---
    @property
    def denoiser(self) -> Any:
        """Return the network that predicts."""
        return getattr(self.pipe, self.DENOISER)

    @property
    def distilled(self) -> bool:
        """Return whether guidance is distilled into the denoiser, so that it is used without an unconditional side."""
        return False

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents."""

    @abstractmethod
    def text_weights(self) -> list[str]:
        """Return the names of the weights whose only input is token vectors, which a closed-form edit can change."""

    def pooled_weights(self) -> list[str]:
        """Return the names of the weights that read the pooled vector; other inputs, if any, come after it."""
        return []

    def parameter_set(self, name: str) -> Callable[[str], bool] | None:
        """Return the test for membership in a named set of parameters, None for an unknown set."""
        return self.SETS.get(name)

    def check(self) -> None:  # noqa: B027
        """Check that the parts' configurations fit each other; by default nothing. Raises `BadModel`."""

    def prepare(self) -> None:  # noqa: B027
        """Bring the pipeline's parts, as they were loaded, to the precision that they need; by default nothing."""

    # --- pixels ---
    @cached_property
    def image_size(self) -> int:
        """Return the height of an image in pixels."""
        return self.latent_shape[1] * self._factor

    def decode(self, latents: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode latents to images in [0, 1], fp32."""
        vae = self.pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
        images = torch.cat([vae.decode(part, return_dict=False)[0] for part in latents.split(_few(latents))])
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ch h2 w2"]:
        """Encode images in [0, 1] to the mode of their latents, fp32."""
        vae = self.pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        few = _few(images[:, :, :: self._factor, :: self._factor])
        parts = [vae.encode((p * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode() for p in images.split(few)]
        return (torch.cat(parts).float() - shift) * vae.config.scaling_factor

    @property
    def _factor(self) -> int:
        """Return the pixels along one side of a latent pixel."""
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)


def _few(latents: Float[Tensor, "b ch h w"]) -> int:
    """Return how many latents the autoencoder takes at once."""
    return max(1, VAE_AREA // (latents.shape[2] * latents.shape[3]))


def known_families() -> list[type[Family]]:
    """Return every family's class."""
    return [registry.get("families", name) for name in registry.names("families")]


def family_of(pipe: Any) -> Family:
    """Return a view of the pipeline by the family that owns it; raises `BadModel` when none does."""
    families = known_families()
    for family in families:
        if family.owns(pipe):
            return family(pipe)
    known = ", ".join(family.TITLE for family in families)
    raise BadModel(f"a {type(pipe).__name__} is of no model family that efface knows (known: {known})")
