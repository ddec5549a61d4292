"""Model: a view of a diffusers pipeline, as methods, attacks and metrics use it."""

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.context import Context, cat
from efface.edits.guard import Guard, Hooks, MapGuard, chain
from efface.errors import BadInput
from efface.models import fingerprint, sampling, text
from efface.models.family import Family, Time, family_of
from efface.models.share_weights import with_weights
from efface.query import Query
from efface.util.files import sha256_text
from efface.util.progress import progress
from efface.util.ranges import ROWS, check, short


@dataclass(frozen=True, eq=False)
class Model:
    """View a text-to-image pipeline: noise prediction eps(x, t, c), text encoding, sampling, weights.

    pipe: the diffusers pipeline.
    guards: what steps in while an image is generated.
    name: where it came from ("mini", a path, a hub id).
    origin: for an edited model, the model it was made from and the edit's id.

    >>> model = Model.load("mini")
    >>> c = model.encode(["a picture of a church"])
    >>> eps = model.eps(torch.randn(1, *model.latent_shape), 500, c)
    """

    pipe: Any = field(repr=False)
    guards: tuple[Guard | MapGuard, ...] = ()
    name: str = ""
    origin: "tuple[Model, str] | None" = field(default=None, repr=False)
    known_hashes: fingerprint.Known = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(
        cls,
        where: str | os.PathLike[str],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | os.PathLike[str] | None = None,
        prediction: Literal["", "epsilon", "v_prediction"] = "",
    ) -> "Model":
        """Load "mini", a diffusers folder, a hub id, or a single-file .safetensors checkpoint.

        tokenizer, prediction: for a single file only. The first is a folder with CLIP's vocabulary, if none is found on
        this machine; the second is "epsilon" or "v_prediction", if the file does not tell (see `SingleFile.open`).
        Raises `BadFile`, `BadModel` or `UnknownName`.
        """
        from efface.models.files.load import load_pipe

        pipe, name = load_pipe(where, dtype, tokenizer, prediction)
        try:
            model = cls(pipe.to(device), name=name)
        except (RuntimeError, AssertionError) as error:  # torch raises these for a device it does not have or know
            raise BadInput(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        model.family.prepare()
        return model

    # --- parts ---
    @cached_property
    def family(self) -> Family:
        """Return the model family; raises `BadModel` for an unknown kind of pipeline, or one whose parts do not fit."""
        found = family_of(self.pipe)
        found.check()
        return found

    def part(self, name: str) -> Any:
        """Return a component of the pipeline ("unet", "vae", "text_encoder", "tokenizer", …), or None."""
        return getattr(self.pipe, name, None)

    @property
    def denoiser(self) -> Any:
        """Return the denoiser."""
        return self.family.denoiser

    @property
    def device(self) -> torch.device:
        """Return the device of the denoiser."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the denoiser's weights."""
        return self.denoiser.dtype

    @property
    def width(self) -> int:
        """Return the number of channels of a token vector as the denoiser reads it."""
        return self.family.width

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (ch, h, w) of the latents."""
        return self.family.latent_shape

    def weights(self, prefix: str | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters themselves by name, of the denoiser by default.

        prefix: of the names; "" adds the text encoders' and the autoencoder's.
        """
        prefix = f"{self.family.DENOISER}." if prefix is None else prefix
        found = {}
        for part in self.family.PARTS:
            module = self.part(part)
            if isinstance(module, nn.Module) and f"{part}.".startswith(prefix.partition(".")[0]):
                found |= {f"{part}.{name}": parameter for name, parameter in module.named_parameters()}
        return {name: parameter for name, parameter in found.items() if name.startswith(prefix)}

    def text_weights(self) -> list[str]:
        """Return the names of the weights whose only input is token vectors."""
        return self.family.text_weights()

    # --- text ---
    def encode(self, prompts: Sequence[str]) -> Context:
        """Encode prompts to contexts, as the diffusers pipeline does; warns when a prompt is cut off."""
        return self.family.encode(prompts)

    def null(self) -> Context:
        """Return the unconditional context, one row."""
        return self.family.null()

    def tokens(self, prompt: str) -> text.Tokens:
        """Return a prompt's token ids and the positions of its last word token and of the end token."""
        return self.family.streams(prompt)[0]

    # --- noise ---
    def levels(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) of x_t = alpha x_0 + sigma eps, shaped to broadcast over (b, ch, h, w)."""
        return self.family.schedule.levels(torch.as_tensor(t, device=self.device).reshape(-1, 1, 1, 1))

    def predict(self, x: Float[Tensor, "b ch h w"], t: Time, c: Context) -> Float[Tensor, "b ch h w"]:
        """Return what the denoiser predicts (eps, v or a flow) for x_t; c: one context or one per image."""
        return self.family.predict(x, t, c)

    def eps(self, x: Float[Tensor, "b ch h w"], t: Time, c: Context) -> Float[Tensor, "b ch h w"]:
        """Predict the noise in x_t, whatever the denoiser was trained to predict; without guards, differentiable.

        For a flow (SD3, FLUX) it is the velocity v = noise - x_0, which takes the place of the noise in all equations.
        t: timestep, 0 to 999 (1 to 1000 for a flow), one or one per image. c: one context or one per image.
        """
        return self.family.eps(x, t, c)

    def hooks(self) -> Hooks:
        """Return new hooks of the guards for one trajectory."""
        bare = replace(self, guards=())
        return chain(guard.start(bare) for guard in self.guards)

    def denoise(
        self, x: Float[Tensor, "b ch h w"], t: Time, c: Context, null: Context, hooks: Hooks | None = None
    ) -> tuple[Float[Tensor, "b ch h w"], Float[Tensor, "b ch h w"]]:
        """Predict (conditional, unconditional) noise under the guards; differentiable in x, c and the weights.

        hooks: from `hooks()`, the same object for all steps of one trajectory; new ones by default.
        """
        hooks = self.hooks() if hooks is None else hooks
        times = torch.as_tensor(t, device=x.device)
        both = cat([hooks.null(null).expand(len(x)), hooks.embed(c).expand(len(x))])
        uncond, cond = self.eps(torch.cat([x, x]), times.repeat(2) if times.dim() else times, both).chunk(2)
        return hooks.guide(self.eps, x, times, cond, uncond)

    # --- images ---
    def timesteps(self, steps: int, name: str = "") -> Tensor:
        """Return the timesteps a solver visits, noisiest first."""
        return self.family.solver(name, steps).timesteps

    def sample(
        self,
        queries: Sequence[Query],
        stop: int | None = None,
        start: int = 0,
        latents: Float[Tensor, "b ch h w"] | None = None,
        grad: bool = False,
    ) -> Float[Tensor, "b ch h w"]:
        """Generate latents for queries that share steps and solver; see `sampling.sample`.

        latents, start: by default those of the queries, which all have latents or none and start at one step.
        Raises `BadInput` for other queries.
        """
        if len({(query.latents is None, query.start) for query in queries}) > 1:
            raise BadInput("queries sampled together must start at the same step")
        if latents is None and queries[0].latents is not None:
            start, latents = queries[0].start, self._begun(queries)["latents"]
        with torch.enable_grad() if grad else torch.inference_mode():
            cond, null = self.contexts(queries)
            x = sampling.sample(self.family, queries, cond, null, self.hooks(), stop, start, latents)
        return x if grad else x.clone()  # the copy, made outside, is a normal tensor

    def generate(self, queries: Sequence[Query], batch: int = 32) -> Float[Tensor, "b 3 h w"]:
        """Generate one image per query, in order, in [0, 1], fp32; queries may differ in every field.

        An image depends on its query only; between different batch sizes it varies by rounding (about 1e-5 in fp32).
        Raises `BadInput` for what is no query, and for a batch below 1.
        """
        given: Any = queries
        if not isinstance(given, Sequence) or not all(isinstance(query, Query) for query in given):
            raise BadInput(f"images are asked for by several Query, [Query(…), …], got {short(given)}")
        check(batch, ROWS, "batch")
        images: dict[int, Tensor] = {}
        with torch.inference_mode():
            cond, null = self.contexts(queries) if queries else (None, None)
            for group in progress(sampling.groups(queries, batch), "images"):
                assert cond is not None
                assert null is not None
                hooks, chosen = self.hooks(), [queries[i] for i in group]
                begun = self._begun(chosen)
                latents = sampling.sample(self.family, chosen, cond[group], null[group], hooks, **begun)
                images |= dict(zip(group, hooks.filter(self.decode(latents)), strict=True))
        if not queries:
            return torch.empty(0, 3, 0, 0)
        return torch.stack([images[i] for i in range(len(queries))]).clone()

    def _begun(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Return where a group of queries starts, and from which latents; {} for noise. Raises `BadInput`."""
        given = [query.latents for query in queries if query.latents is not None]
        if not given:
            return {}
        for latents in given:
            if latents.shape[1:] != self.latent_shape:
                own = list(self.latent_shape)
                raise BadInput(
                    f"the latents have shape {list(latents.shape[1:])}, {self.name or 'this model'} reads {own}"
                )
        return {"start": queries[0].start, "latents": torch.cat(given)}

    def contexts(self, queries: Sequence[Query]) -> tuple[Context, Context]:
        """Return the conditional and the unconditional context of each query; every prompt is encoded once."""
        prompts = list(dict.fromkeys(query.prompt for query in queries))
        known = self.encode(prompts)
        row = {prompt: i for i, prompt in enumerate(prompts)}
        rows = [known[row[query.prompt] : row[query.prompt] + 1] for query in queries]
        for i, query in enumerate(queries):
            if query.context is not None:
                rows[i] = self._own(query.context, rows[i])
        cond, null = cat(rows), self.null().expand(len(queries))
        if all(query.embedded is None for query in queries):
            return cond, null
        if cond.guidance is None:
            raise BadInput(f"{self.name or 'this model'} reads no guidance scale as a number: leave embedded out")
        given = enumerate(query.embedded for query in queries)
        scales = torch.tensor([cond.guidance[i].item() if one is None else float(one) for i, one in given])
        return tuple(replace(c, guidance=scales.to(cond.guidance)) for c in (cond, null))  # pyright: ignore[reportReturnType]

    def _own(self, given: Context, encoded: Context) -> Context:
        """Return a query's own context, with the prompt's pooled vector where it has none; raises `BadInput`."""
        if given.tokens.shape != encoded.tokens.shape:
            shapes = [list(one.tokens.shape[1:]) for one in (given, encoded)]
            raise BadInput(f"the context has shape {shapes[0]}, {self.name or 'this model'} reads {shapes[1]}")
        own = given.to(encoded)
        pooled = encoded.pooled if own.pooled is None else own.pooled
        return replace(own, pooled=pooled, guidance=encoded.guidance if own.guidance is None else own.guidance)

    def decode(self, latents: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode latents to images in [0, 1], fp32."""
        return self.family.decode(latents)

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ch h2 w2"]:
        """Encode images in [0, 1] to the mode of their latents, fp32."""
        return self.family.encode_images(images)

    # --- identity ---
    @cached_property
    def id(self) -> str:
        """Return the sha256 of the weights and the scheduler's configuration, and of edits and guards if any."""
        if self.origin is not None:
            return fingerprint.derived_id(self.origin[0].id, self.origin[1], self.guards)
        return fingerprint.model_id(self.weights(""), self.part("scheduler").config, self.guards)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return a short hash of every named weight's values, rounded to bf16 so that the precision of the
        loaded model does not matter."""
        return fingerprint.hashes(self.weights(""), names, self.known_hashes)

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return one sha256 of the named weights; an edit has it to recognise the model it was made on."""
        return sha256_text(json.dumps(self.hashes(sorted(names))))

    def base(self, names: Iterable[str]) -> dict[str, Any]:
        """Describe this model in an edit's provenance; `hashes` covers the edit's own weights."""
        shapes = [[name, list(weight.shape)] for name, weight in sorted(self.weights().items())]
        names = sorted(names)
        return {
            "name": self.name,
            "id": self.id,
            "fingerprint": self.fingerprint(names),
            "architecture": sha256_text(json.dumps(shapes)),
            "cross_attention": self.text_weights(),
            "blocks": dict(self.family.BLOCKS),
            "hashes": self.hashes(names),
        }

    # --- variants ---
    def guarded(self, *guards: Guard | MapGuard) -> "Model":
        """Return the same model with more guards."""
        return replace(self, guards=self.guards + guards)

    def edited(self, weights: Mapping[str, Tensor], guards: tuple[Guard | MapGuard, ...] = (), id: str = "") -> "Model":
        """Return a model with other values for some weights; it shares all else with this one, which is not changed."""
        pipe = copy.copy(self.pipe)
        for part in self.family.PARTS:
            own = {name.removeprefix(part + "."): w for name, w in weights.items() if name.startswith(part + ".")}
            if own:
                setattr(pipe, part, with_weights(self.part(part), own))
        return Model(pipe, self.guards + guards, self.name, (self, id))
