"""Guards: what steps in while an image is drawn, at three places (text, noise, pixels), instead of changing weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept

Eps = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, c) -> eps, unguarded


def same(value: Any) -> Any:
    """Return the value itself: the hook that does nothing."""
    return value


def unguided(_eps: Eps, _x: Tensor, _t: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
    """Return both predictions as they are: the guidance hook that does nothing."""
    return cond, uncond


@dataclass
class Hooks:
    """Hold what a guard does on one trajectory; every hook defaults to doing nothing.

    embed: (c) -> c, the conditional context, (b, len, dim).
    null: (c) -> c, the unconditional context; apart from `embed` so that a negative prompt costs no third pass.
    guide: (eps, x, t, cond, uncond) -> (cond, uncond), with eps(x, t, c) unguarded and x scaled as the UNet sees it.
    filter: (images) -> images, (b, 3, h, w) in [0, 1].
    """

    embed: Callable[[Tensor], Tensor] = same
    guide: Callable[[Eps, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = unguided
    filter: Callable[[Tensor], Tensor] = same
    null: Callable[[Tensor], Tensor] = same


@runtime_checkable
class InferenceTime(Protocol):
    """What a guard must know of an inference-time method: how it starts."""

    def start(self, model: Any, erase: tuple[Concept, ...]) -> Hooks: ...


@dataclass(frozen=True)
class Guard:
    """Pair an inference-time method with what it holds back; `start` gives the hooks of one trajectory."""

    method: InferenceTime
    erase: tuple[Concept, ...]

    def start(self, model: Any) -> Hooks:
        """Return fresh hooks; `model` is the unguarded model they act on."""
        return self.method.start(model, self.erase)


@dataclass(frozen=True, eq=False)
class MapGuard:
    """Apply a closed-form edit to the text embeddings: e -> e (I + L R)^T for both contexts.

    Weights act as e W^T, so W (I + L R) on e is W on e (I + L R)^T: the images are those of the weight edit.
    """

    left: Float[Tensor, "dim r"]
    right: Float[Tensor, "r dim"]

    def start(self, model: Any) -> Hooks:
        """Return hooks that map the conditional and the unconditional context alike."""
        left = self.left.to(model.device)
        right = self.right.to(model.device)

        def embed(c: Tensor) -> Tensor:
            wide = c.to(left.dtype)
            return (wide + (wide @ right.mT) @ left.mT).to(c.dtype)

        return Hooks(embed=embed, null=embed)


def chain(hooks: Iterable[Hooks]) -> Hooks:
    """Compose the hooks of several guards; the first guard acts first."""
    parts = tuple(hooks)
    if len(parts) == 1:
        return parts[0]

    def compose(name: str) -> Callable[[Tensor], Tensor]:
        calls = [getattr(part, name) for part in parts if getattr(part, name) is not same]

        def run(value: Tensor) -> Tensor:
            for call in calls:
                value = call(value)
            return value

        return run if calls else same

    guides = [part.guide for part in parts if part.guide is not unguided]

    def guide(eps: Eps, x: Tensor, t: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
        for call in guides:
            cond, uncond = call(eps, x, t, cond, uncond)
        return cond, uncond

    return Hooks(compose("embed"), guide if guides else unguided, compose("filter"), compose("null"))
