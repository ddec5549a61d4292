"""Model: a thin view of a diffusers pipeline. Methods, attacks and metrics talk to `eps`, `denoise` and `generate`."""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.edits.guard import Guard, Hooks, MapGuard, chain
from efface.errors import BadInput
from efface.models import fingerprint, sampling, schedulers, text
from efface.query import Query
from efface.util.files import sha256_text
from efface.util.progress import progress

if TYPE_CHECKING:
    import os

    from diffusers import DiffusionPipeline

    from efface.models.files.single_file import Prediction

Time = Tensor | float | int  # a timestep, 0 to 999: one, or one per image
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
DECODE_AREA = 16384  # latent pixels decoded at once: 4 images of 512 pixels, 64 of 64 (of factor 4)


@dataclass(frozen=True, eq=False)
class Model:
    """View a text-to-image pipeline as one callable, eps(x, t, c), and what goes around it.

    pipe: the diffusers pipeline.
    guards: what steps in while images are drawn.
    name: where it came from ("mini", a path, a hub id).
    origin: for an edited model, the model below and the edit's id.

    >>> model = Model.load("mini")
    >>> c = model.encode(["a picture of a church"])
    >>> eps = model.eps(torch.randn(1, *model.latent_shape), 500, c)
    """

    pipe: "DiffusionPipeline" = field(repr=False)
    guards: tuple[Guard | MapGuard, ...] = ()
    name: str = ""
    origin: "tuple[Model, str] | None" = field(default=None, repr=False)
    known_hashes: dict[str, tuple[tuple[int, int], str]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(
        cls,
        where: "str | os.PathLike[str]",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: "str | os.PathLike[str] | None" = None,
        prediction: "Prediction" = "",
    ) -> "Model":
        """Load "mini", a diffusers folder, a hub id, or a single-file .safetensors checkpoint (SD 1.x and 2.x).

        tokenizer, prediction: for a single file only. A folder with CLIP's vocabulary, when none is found on this
        machine; and "epsilon" or "v_prediction", when the file does not say which (see `load_single_file`).
        Raises `BadFile`, `BadModel` or `UnknownName`.
        """
        from efface.models.files.load import load_pipe

        pipe, name = load_pipe(where, dtype, tokenizer, prediction)
        try:
            return cls(pipe.to(device), name=name)
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not have or know
            raise BadInput(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error

    # --- parts ---
    def part(self, name: str) -> Any:
        """Return a component of the pipeline ("unet", "vae", "text_encoder", "tokenizer", …), or None."""
        return getattr(self.pipe, name, None)

    @property
    def unet(self) -> Any:
        """Return the denoiser."""
        return self.part("unet")

    @property
    def device(self) -> torch.device:
        """Return where the denoiser is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the denoiser's weights."""
        return self.unet.dtype

    @property
    def width(self) -> int:
        """Return the number of channels of a text vector as the denoiser reads it."""
        return self.unet.config.cross_attention_dim

    @property
    def prediction(self) -> str:
        """Return what the denoiser predicts: "epsilon", "v_prediction" or "sample"."""
        return self.part("scheduler").config.prediction_type

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents."""
        config = self.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def weights(self, prefix: str = "unet.") -> dict[str, nn.Parameter]:
        """Return the parameters themselves by name; prefix "" adds the text encoder's and the autoencoder's."""
        found = {}
        for part in PARTS:
            module = self.part(part)
            if module is not None and (part + ".").startswith(prefix.partition(".")[0]):
                found |= {f"{part}.{name}": parameter for name, parameter in module.named_parameters()}
        return {name: parameter for name, parameter in found.items() if name.startswith(prefix)}

    def cross_attention(self) -> list[str]:
        """Return the names of the key and value weights that read the text, in module order."""
        return [
            f"unet.{name}.{which}.weight"
            for name, module in self.unet.named_modules()
            if getattr(module, "is_cross_attention", False)
            for which in ("to_k", "to_v")
        ]

    # --- text ---
    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "b len dim"]:
        """Encode prompts to contexts, as the diffusers pipeline does; warns when a prompt is cut off."""
        return text.encode(self.part("tokenizer"), self.part("text_encoder"), prompts).to(self.dtype)

    def tokens(self, prompt: str) -> text.Tokens:
        """Return a prompt's token ids and the positions of its last word token and of the end token."""
        return text.tokens(self.part("tokenizer"), prompt)

    # --- noise ---
    def raw(self, x: Tensor, t: Time, c: Tensor) -> Tensor:
        """Return what the denoiser predicts (eps or v), fp32, for x as it sees it; c: one context or one per image."""
        if len(c) != len(x):
            c = c.expand(len(x), -1, -1)
        out = self.unet(x.to(self.dtype), t, encoder_hidden_states=c.to(self.dtype), return_dict=False)[0]
        return out.to(x.dtype)

    def levels(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) of x_t = alpha x_0 + sigma eps, shaped to broadcast over (b, ch, h, w)."""
        t = torch.as_tensor(t, device=self.device).reshape(-1, 1, 1, 1)
        return schedulers.levels(self.part("scheduler").alphas_cumprod, t)

    def eps(self, x: Float[Tensor, "b ch h w"], t: Time, c: Float[Tensor, "c len dim"]) -> Float[Tensor, "b ch h w"]:
        """Predict the noise in x_t, whatever the denoiser was trained to predict; without guards, differentiable.

        t: timestep, 0 to 999, one or one per image. c: one context or one per image.
        """
        raw = self.raw(x, t, c)
        if self.prediction == "epsilon":
            return raw
        return schedulers.to_eps(raw, x, *self.levels(t), self.prediction)

    def hooks(self) -> Hooks:
        """Return the guards' hooks, fresh, for one trajectory."""
        bare = replace(self, guards=())
        return chain(guard.start(bare) for guard in self.guards)

    def denoise(self, x: Tensor, t: Time, c: Tensor, null: Tensor, hooks: Hooks | None = None) -> tuple[Tensor, Tensor]:
        """Predict (conditional, unconditional) noise under the guards; differentiable in x, c and the weights.

        hooks: from `hooks()`, the same object for all steps of one trajectory; fresh ones by default.
        """
        hooks = self.hooks() if hooks is None else hooks
        c, null = hooks.embed(c), hooks.null(null)
        c, null = (context.expand(len(x), -1, -1) for context in (c, null))
        times = torch.as_tensor(t, device=x.device)
        uncond, cond = self.eps(
            torch.cat([x, x]), times.repeat(2) if times.dim() else times, torch.cat([null, c])
        ).chunk(2)
        return hooks.guide(self.eps, x, times, cond, uncond)

    # --- images ---
    def timesteps(self, steps: int, name: str = "") -> Tensor:
        """Return the timesteps a solver visits, noisiest first."""
        return schedulers.ready(self.pipe, name, steps, self.device).timesteps

    def sample(
        self,
        queries: Sequence[Query],
        stop: int | None = None,
        start: int = 0,
        latents: Float[Tensor, "b ch h w"] | None = None,
        grad: bool = False,
    ) -> Float[Tensor, "b ch h w"]:
        """Draw latents for queries that share steps and solver, or stop half-way: see `sampling.sample`."""
        with torch.enable_grad() if grad else torch.inference_mode():
            x = sampling.sample(self, queries, stop, start, latents)
        return x if grad else x.clone()  # the copy, made outside, is a normal tensor

    def generate(self, queries: Sequence[Query], batch: int = 32) -> Float[Tensor, "b 3 h w"]:
        """Draw one image per query, in order, in [0, 1], fp32; queries may differ in every field.

        An image depends on its query only; between different batch sizes it varies by rounding (about 1e-5 in fp32).
        """
        images: dict[int, Tensor] = {}
        with torch.inference_mode():
            known = sampling.contexts(self, queries)
            for group in progress(sampling.groups(queries, batch), "images"):
                hooks = self.hooks()
                chosen = [queries[i] for i in group]
                latents = sampling.sample(self, chosen, known=known, hooks=hooks)
                images |= dict(zip(group, hooks.filter(self.decode(latents)), strict=True))
        if not queries:
            return torch.empty(0, 3, 0, 0)
        return torch.stack([images[i] for i in range(len(queries))]).clone()

    def decode(self, latents: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode latents to images in [0, 1], fp32."""
        vae = self.part("vae")
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
        few = max(1, DECODE_AREA // (latents.shape[2] * latents.shape[3]))
        images = torch.cat([vae.decode(part, return_dict=False)[0] for part in latents.split(few)])
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ch h2 w2"]:
        """Encode images in [0, 1] to the mode of their latents, fp32."""
        vae = self.part("vae")
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents.float() - shift) * vae.config.scaling_factor

    # --- identity ---
    @cached_property
    def id(self) -> str:
        """Return the sha256 of the weights and the scheduler's configuration, and of edits and guards if any."""
        return fingerprint.model_id(self)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return a short hash of every named weight's values, rounded to bf16 so that the precision the model is
        loaded in does not matter."""
        return fingerprint.hashes(self, names)

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return one sha256 of the named weights; an edit holds it to know the model it was made on."""
        return sha256_text(json.dumps(self.hashes(sorted(names))))

    def base(self, names: Iterable[str]) -> dict[str, Any]:
        """Describe this model in an edit's provenance, as far as the edit's weights are concerned."""
        return fingerprint.base(self, names)

    # --- variants ---
    def guarded(self, *guards: Guard | MapGuard) -> "Model":
        """Return the same model with more guards."""
        return replace(self, guards=self.guards + guards)

    def edited(self, weights: Mapping[str, Tensor], guards: tuple[Guard | MapGuard, ...] = (), id: str = "") -> "Model":
        """Return a model with other values for some weights; it shares all else with this one, which stays as it is."""
        from efface.models.share_weights import with_weights

        pipe = copy.copy(self.pipe)
        for part in PARTS:
            own = {name.removeprefix(part + "."): w for name, w in weights.items() if name.startswith(part + ".")}
            if own:
                setattr(pipe, part, with_weights(self.part(part), own))
        return Model(pipe, self.guards + guards, self.name, (self, id))
