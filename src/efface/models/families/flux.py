"""FLUX.1 dev and schnell: T5 for the tokens, CLIP for the pooled vector; a transformer that predicts a flow.

Black Forest Labs 2024, https://github.com/black-forest-labs/flux. Guidance is distilled into both: dev reads its scale
as a number beside the timestep, schnell has none. True guidance, with a second pass, works on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.context import Context
from efface.errors import BadModel
from efface.models import text
from efface.models.family import Time
from efface.models.files.original_layout import Configs, Shapes
from efface.models.transformer_family import TransformerFamily

LENGTH, SHORT = 512, 256  # tokens of T5: dev's, and schnell's
SCALE = 3.5  # of the embedded guidance, the pipeline's default
SIDE = 128  # of the latents, where the autoencoder does not tell


@dataclass(frozen=True, eq=False)
class Flux(TransformerFamily):
    """View a FLUX.1 pipeline; latents are packed, 2 × 2 to a token, inside the denoiser's arguments only."""

    TITLE: ClassVar[str] = "FLUX.1"
    GUIDANCE: ClassVar[float] = 1.0  # of true guidance, the pipeline's default
    PARTS: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "vae")
    BLOCKS: ClassVar[Mapping[str, str]] = {"double": "transformer_blocks", "single": "single_transformer_blocks"}

    @classmethod
    def owns(cls, pipe: Any) -> bool:
        """Return whether a pipeline has the transformer of FLUX.1, with its rotary embedding of three axes."""
        config: Any = getattr(getattr(pipe, "transformer", None), "config", {})
        return "guidance_embeds" in config and "num_single_layers" in config and "pooled_projection_dim" in config

    @classmethod
    def reads(cls, shapes: Shapes) -> bool:
        """Return whether tensors of these names are FLUX's in Black Forest Labs' layout."""
        return any(name.endswith("double_blocks.0.img_attn.qkv.weight") for name in shapes)

    @classmethod
    def configs(cls, shapes: Shapes, meta: Mapping[str, str], prediction: str = "") -> Configs:
        """Raise `BadModel`: such files hold the transformer alone."""
        raise BadModel(
            "it is the transformer of FLUX.1 alone, without text encoders and autoencoder: give the diffusers folder "
            "or the hub id of the model"
        )

    @property
    def distilled(self) -> bool:
        """Return True: dev and schnell are both used without an unconditional side."""
        return True

    @property
    def patch(self) -> int:
        """Return 2: the side of the square of latents that is packed into one token."""
        return 2

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents before packing, at the size that the autoencoder was trained on."""
        size = getattr(getattr(getattr(self.pipe, "vae", None), "config", None), "sample_size", None)
        side = size // self._factor // 2 * 2 if size else SIDE
        return self.denoiser.config.in_channels // 4, side, side

    def check(self) -> None:
        """Check the scheduler, that T5 is there, and the channels of the latents. Raises `BadModel`."""
        super().check()
        if getattr(self.pipe, "text_encoder_2", None) is None:
            raise BadModel("FLUX.1 reads its prompts by T5, and text_encoder_2 is missing: give the whole model")
        config, vae = self.denoiser.config, getattr(self.pipe, "vae", None)
        channels = getattr(getattr(vae, "config", None), "latent_channels", config.in_channels // 4)
        if config.in_channels != 4 * channels:
            raise BadModel(
                f"the transformer reads {config.in_channels} channels and the autoencoder has 4 × {channels}: efface "
                "needs a text-to-image model (those for inpainting, depth and edges read more)"
            )

    # --- text ---
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts: T5's tokens and CLIP's pooled vector, and the scale of the guidance where it is read."""
        pipe = self.pipe
        text.warn_if_cut(pipe.tokenizer, prompts, stacklevel=3)
        text.warn_if_cut(pipe.tokenizer_2, prompts, 3, self._length)
        options = {"device": pipe.text_encoder.device, "max_sequence_length": self._length}
        tokens, pooled, _ = pipe.encode_prompt(list(prompts), **options)
        scale = torch.full((len(tokens),), SCALE, device=tokens.device) if self._reads_scale else None
        return Context(tokens, pooled, scale).to(self.denoiser.dtype)

    def text_encoders(self) -> tuple[Any, ...]:
        """Return T5; the pooled vector, which CLIP makes, is not of single tokens."""
        return (self.pipe.text_encoder_2.encoder,)

    def tokenizers(self) -> tuple[Any, ...]:
        """Return T5's tokenizer."""
        return (self.pipe.tokenizer_2,)

    def streams(self, prompt: str) -> tuple[text.Tokens, ...]:
        """Return the prompt's tokens for T5."""
        return (text.tokens(self.pipe.tokenizer_2, prompt, self._length),)

    @property
    def _reads_scale(self) -> bool:
        return self.denoiser.config.guidance_embeds

    @property
    def _length(self) -> int:
        """Return the number of T5's tokens."""
        return min(LENGTH if self._reads_scale else SHORT, self.pipe.tokenizer_2.model_max_length)

    # --- noise ---
    def sigmas(self, steps: int) -> list[float]:
        """Return evenly spaced noise levels, 1 to 1/steps."""
        return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()

    def inputs(self, x: Float[Tensor, "b ch h w"], t: Time) -> tuple[Tensor, dict[str, Any]]:
        """Return the packed latents, their places (0, y, x), and the noise level, 0 to 1, in place of the timestep."""
        _, _, height, width = x.shape
        rows, columns = torch.arange(height // 2, device=x.device), torch.arange(width // 2, device=x.device)
        places = torch.cartesian_prod(torch.zeros(1, device=x.device), rows.float(), columns.float()).to(x.dtype)
        level = torch.as_tensor(t, device=x.device).expand(len(x)).to(x.dtype) / self.schedule.total
        return pack(x), {"timestep": level, "img_ids": places}

    def inputs_of(self, arguments: Mapping[str, Any]) -> tuple[Float[Tensor, "b ch h w"], Tensor]:
        """Return (x_t, t) in the arguments."""
        height, width = (int(side) + 1 for side in arguments["img_ids"][:, 1:].max(0).values)
        x = unpack(arguments["hidden_states"], height, width)
        return x, arguments["timestep"] * self.schedule.total

    def output(self, out: Tensor, x: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b ch h w"]:
        """Return the denoiser's output unpacked."""
        return unpack(out, x.shape[2] // 2, x.shape[3] // 2)

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the keyword arguments that carry the context; all token places are 0."""
        given = super().arguments(c, count)
        given["txt_ids"] = c.tokens.new_zeros(c.tokens.shape[1], 3)
        if self._reads_scale:
            given["guidance"] = c.tokens.new_full((count,), SCALE) if c.guidance is None else c.guidance
        return given

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the keyword arguments."""
        return replace(super().context_of(arguments), guidance=arguments.get("guidance"))


def pack(x: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b tokens ch4"]:
    """Return squares of 2 × 2 latents as one token each, row by row; the channel varies slowest within a token."""
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Float[Tensor, "b tokens ch4"], height: int, width: int) -> Float[Tensor, "b ch h w"]:
    """Return the latents of height × width tokens: the inverse of `pack`."""
    squares = tokens.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
