"""Guards: hooks on the text, the noise prediction and the pixels during sampling, instead of changed weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.errors import BadEdit

Images = Float[Tensor, "b 3 h w"]
Latents = Float[Tensor, "b ch h w"]
Eps = Callable[[Latents, Tensor, Context], Latents]  # (x_t, t, c) -> eps, unguarded
Guide = Callable[[Eps, Latents, Tensor, Latents, Latents], tuple[Latents, Latents]]


def same(value: Any) -> Any:
    """Return the value itself: the hook that does nothing."""
    return value


def unguided(_eps: Eps, _x: Latents, _t: Tensor, cond: Latents, uncond: Latents) -> tuple[Latents, Latents]:
    """Return both predictions as they are: the guidance hook that does nothing."""
    return cond, uncond


@dataclass
class Hooks:
    """Hold the hooks of a guard for one trajectory; by default they do nothing.

    embed: (c) -> c, the conditional context, one row an image.
    null: (c) -> c, the unconditional context; separate from `embed` so that a negative prompt costs no third pass.
    guide: (eps, x, t, cond, uncond) -> (cond, uncond), all (b, ch, h, w) but t, which is one timestep or one an image;
        eps(x, t, c) is unguarded, and x is scaled as the denoiser sees it.
    filter: (images) -> images, (b, 3, h, w) in [0, 1].
    """

    embed: Callable[[Context], Context] = same
    guide: Guide = unguided
    filter: Callable[[Images], Images] = same
    null: Callable[[Context], Context] = same


@runtime_checkable
class InferenceTime(Protocol):
    """Protocol of an inference-time method, as a guard uses it."""

    def start(self, model: Any, erase: tuple[Concept, ...]) -> Hooks: ...


@dataclass(frozen=True)
class Guard:
    """Hold an inference-time method and the concepts it suppresses."""

    method: InferenceTime
    erase: tuple[Concept, ...]

    def start(self, model: Any) -> Hooks:
        """Return new hooks; `model` is the unguarded model."""
        return self.method.start(model, self.erase)


@dataclass(frozen=True, eq=False)
class MapGuard:
    """Apply a closed-form edit to the text embeddings: e -> e (I + L R)^T for the token vectors of both contexts.

    Weights act as e W^T, so W (I + L R) on e is W on e (I + L R)^T: the images are those of the weight edit.
    """

    left: Float[Tensor, "dim r"]
    right: Float[Tensor, "r dim"]

    def start(self, model: Any) -> Hooks:
        """Return hooks that map the conditional and the unconditional context alike.

        Raises `BadEdit` for a model of another width.
        """
        if self.left.shape[0] != model.width:
            raise BadEdit(f"this edit maps texts of width {self.left.shape[0]}, this model reads {model.width}")
        left = self.left.to(model.device)
        right = self.right.to(model.device)

        def embed(c: Context) -> Context:
            wide = c.tokens.to(left.dtype)
            return c.with_tokens((wide + (wide @ right.mT) @ left.mT).to(c.tokens.dtype))

        return Hooks(embed=embed, null=embed)


def chain(hooks: Iterable[Hooks]) -> Hooks:
    """Compose the hooks of several guards; the first guard acts first."""
    parts = tuple(hooks)
    if len(parts) == 1:
        return parts[0]

    def compose(name: str) -> Callable[[Any], Any]:
        calls = [getattr(part, name) for part in parts if getattr(part, name) is not same]
        return joined(calls)

    def joined(calls: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            for call in calls:
                value = call(value)
            return value

        return run if calls else same

    guides = [part.guide for part in parts if part.guide is not unguided]

    def guide(eps: Eps, x: Latents, t: Tensor, cond: Latents, uncond: Latents) -> tuple[Latents, Latents]:
        for call in guides:
            cond, uncond = call(eps, x, t, cond, uncond)
        return cond, uncond

    alike = all(part.embed is part.null for part in parts)  # then both contexts are changed by one and the same hook
    embed = compose("embed")
    null = embed if alike else compose("null")
    return Hooks(embed, guide if guides else unguided, compose("filter"), null)
