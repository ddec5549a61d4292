"""What families with a diffusion transformer share: joint attention of text and image, and a rectified flow.

The text enters through one linear layer, `context_embedder`; from there on it is mixed with the image and the timestep.
Esser et al. 2024, https://arxiv.org/abs/2403.03206.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.context import Context
from efface.errors import BadInput, BadModel
from efface.models import schedulers
from efface.models.family import Family, Time
from efface.models.schedules import Flow

ENDS = ("transformer.time_text_embed.", "transformer.norm_out.", "transformer.proj_out.")
TEXT = (".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.")  # the text's own layers of joint attention
SOLVERS = ("", "ddim", "euler")  # all three are Euler's method: DDIM without noise is that for a flow


def _reads_text(name: str) -> bool:
    return any(part in name for part in TEXT)


def _attends(name: str) -> bool:
    return ".attn." in name or ".attn2." in name  # SD3.5's attn2 is the image's self-attention


@dataclass(frozen=True, eq=False)
class TransformerFamily(Family):
    """Base class of families whose denoiser is a transformer with joint attention that predicts a flow."""

    DENOISER: ClassVar[str] = "transformer"
    BLOCKS: ClassVar[Mapping[str, str]] = {"joint": "transformer_blocks"}
    FAST: ClassVar[str] = ""
    SETS: ClassVar[Mapping[str, Callable[[str], bool]]] = {
        "x": _reads_text,
        "x-strict": lambda name: ".add_k_proj." in name or ".add_v_proj." in name,
        "add_k_proj": lambda name: ".add_k_proj." in name,
        "add_v_proj": lambda name: ".add_v_proj." in name,
        "context": lambda name: name.startswith("transformer.context_embedder."),
        "u": lambda name: not _reads_text(name) and not name.startswith((*ENDS, "transformer.context_embedder.")),
        "notime": lambda name: not name.startswith(ENDS),
        "u-linear": lambda name: not _reads_text(name) and "norm" not in name and "embed" not in name,
        "selfattn": lambda name: _attends(name) and not _reads_text(name) and "added" not in name,
        "attn": _attends,
        "to_out": lambda name: ".to_out." in name or ".to_add_out." in name,
        "full": lambda name: True,
    }

    @property
    def width(self) -> int:
        """Return the number of channels of a token vector as the denoiser reads it."""
        return self.denoiser.config.joint_attention_dim

    def text_weights(self) -> list[str]:
        """Return the name of the one weight that reads the text alone; its bias is no part of an edit."""
        return ["transformer.context_embedder.weight"]

    def pooled_weights(self) -> list[str]:
        """Return the name of the weight that reads the pooled vector."""
        return ["transformer.time_text_embed.text_embedder.linear_1.weight"]

    # --- noise ---
    @cached_property
    def schedule(self) -> Flow:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the flow, with as many timesteps as the scheduler has."""
        return Flow(total=self.pipe.scheduler.config.num_train_timesteps)

    @property
    def image_tokens(self) -> int:
        """Return the number of tokens of an image, which the shift of the noise levels may depend on."""
        _, height, width = self.latent_shape
        return (height // self.patch) * (width // self.patch)

    @property
    def patch(self) -> int:
        """Return the side of the square of latents that is one token."""
        return self.denoiser.config.patch_size

    def sigmas(self, steps: int) -> list[float] | None:
        """Return the noise levels before they are shifted, noisiest first; none stands for the scheduler's own."""
        return None

    def solver(self, name: str, steps: int) -> Any:
        """Return a new scheduler of the pipeline's kind with its timesteps set, as the pipeline does.

        Raises `BadInput` for other solvers than Euler's method ("", "ddim", "euler").
        """
        if name not in SOLVERS:
            raise BadInput(f"{self.TITLE} takes steps of Euler's method only: leave the solver out, got {name!r}")
        scheduler = schedulers.make(self.pipe)
        options: dict[str, Any] = {}
        if scheduler.config.use_dynamic_shifting:
            options["mu"] = shift(self.image_tokens, scheduler.config)
        sigmas = self.sigmas(steps)
        if sigmas is not None and not scheduler.config.get("use_flow_sigmas"):
            options["sigmas"] = sigmas
        scheduler.set_timesteps(steps, device=self.denoiser.device, **options)
        return scheduler

    def check(self) -> None:
        """Check the scheduler. Raises `BadModel` for one that is not of a flow."""
        scheduler: Any = getattr(self.pipe, "scheduler", None)
        if scheduler is not None and "use_dynamic_shifting" not in scheduler.config:
            raise BadModel(
                f"{self.TITLE} predicts a flow, and a {type(scheduler).__name__} does not sample one: give the model "
                "with its own FlowMatchEulerDiscreteScheduler"
            )

    # --- arguments of the denoiser ---
    def inputs(self, x: Float[Tensor, "b ch h w"], t: Time) -> tuple[Tensor, dict[str, Any]]:
        """Return the noised latents, and the timestep, one for each image."""
        return x, {"timestep": torch.as_tensor(t, device=x.device).expand(len(x))}

    def inputs_of(self, arguments: Mapping[str, Any]) -> tuple[Float[Tensor, "b ch h w"], Tensor]:
        """Return (x_t, t) in the arguments."""
        return arguments["hidden_states"], arguments["timestep"]

    def arguments(self, c: Context, count: int) -> dict[str, Any]:
        """Return the keyword arguments that carry the context."""
        return {"encoder_hidden_states": c.tokens, "pooled_projections": c.pooled}

    def context_of(self, arguments: Mapping[str, Any]) -> Context:
        """Return the context in the keyword arguments."""
        return Context(arguments["encoder_hidden_states"], arguments["pooled_projections"])


def shift(tokens: int, config: Any) -> float:
    """Return mu, by which larger images are sampled at more noise: linear in their tokens, as the pipelines have it."""
    few, many = config.base_image_seq_len, config.max_image_seq_len
    return config.base_shift + (tokens - few) * (config.max_shift - config.base_shift) / (many - few)
