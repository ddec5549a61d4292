"""Attach an edit to a diffusers pipeline: weights in place, guards around the pipeline's own loop."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.context import Context, cat
from efface.edits.edit import Edit
from efface.edits.guard import Guard, Hooks, MapGuard, same, unguided
from efface.errors import BadEdit, BadInput
from efface.models.model import Model
from efface.util.ranges import short


def attach(edit: Edit, pipe: Any, any_base: bool = False) -> None:
    """Apply an edit permanently to a diffusers pipeline; `pipe(prompt)` then generates edited images.

    any_base: also accept a model with other weights of the same architecture than the edit was made on.
    Raises `BadEdit` when it does not fit or when a guard cannot be attached (nothing is changed then), and `BadModel`
    for a pipeline of no known family.

    >>> efface.attach(efface.Edit.load("church.safetensors"), pipe)
    """
    if not isinstance(edit, Edit):
        raise BadInput(f"an Edit is attached, got {short(edit)}: read a file with efface.Edit.load")
    if edit.guards and not hasattr(type(pipe), "do_classifier_free_guidance"):
        raise BadEdit(
            f"a guard cannot be attached to a {type(pipe).__name__}, which does not call its denoiser on both sides of "
            "guidance at once: use `applied` on a Model instead"
        )
    model = Model(pipe)
    weights, new = model.weights(""), edit.new_weights(model, any_base)
    with torch.no_grad():
        for name, value in new.items():
            weights[name].copy_(value)
    if edit.guards:
        _guard(pipe, edit.guards)


def _guard(pipe: Any, guards: tuple[Guard | MapGuard, ...]) -> None:
    """Give the pipeline a subclass whose call runs under the guards."""
    if hasattr(pipe, "_efface_guards"):
        pipe._efface_guards += guards
        return
    pipe._efface_guards = guards
    plain = type(pipe)

    @torch.no_grad()
    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = Model(self)
        hooks = model.guarded(*self._efface_guards).hooks()
        wanted = kwargs.get("output_type", "pil")
        if hooks.filter is not same:
            if wanted == "latent":
                raise BadEdit("a guard on pixels is attached: this pipeline cannot return latents")
            kwargs["output_type"] = "pt"
        with _hooked(model, hooks):
            output = plain.__call__(self, *args, **kwargs)
        return output if hooks.filter is same else _filtered(self, output, hooks, wanted)

    pipe.__class__ = type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__})


def _filtered(pipe: Any, output: Any, hooks: Hooks, wanted: str) -> Any:
    """Run the pixel guard on the generated images and return them in the requested output type."""
    images = hooks.filter(output[0])
    if wanted != "pt":
        images = pipe.image_processor.pt_to_numpy(images)
        images = pipe.image_processor.numpy_to_pil(images) if wanted == "pil" else images
    if isinstance(output, tuple):
        return (images, *output[1:])
    output.images = images
    return output


@contextmanager
def _hooked(model: Model, hooks: Hooks) -> Iterator[None]:
    """Apply the guards to every pass of the denoiser inside the block."""
    guarded = _Guarded(model, hooks)
    handles = [
        model.denoiser.register_forward_pre_hook(guarded.before, with_kwargs=True),
        model.denoiser.register_forward_hook(guarded.after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Guarded:
    """Apply the guards around the pipeline's passes of the denoiser; the guards' own passes are not guarded."""

    def __init__(self, model: Model, hooks: Hooks):
        self.model, self.hooks, self.inside = model, hooks, False
        self.seen: tuple[Tensor, Context] | None = None  # tokens before -> context after: the same in all steps

    @property
    def both(self) -> bool:
        """Return whether a pass has both sides of guidance, which the pipeline knows once it is called."""
        return self.model.pipe.do_classifier_free_guidance

    def eps(self, x: Float[Tensor, "b ch h w"], t: Tensor, c: Context) -> Float[Tensor, "b ch h w"]:
        """Predict noise without the guards."""
        self.inside = True
        try:
            return self.model.eps(x, t, c)
        finally:
            self.inside = False

    def before(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Apply the guards to the contexts that the denoiser reads."""
        if self.inside:
            return None
        given = self.model.family.context_of(_named(module, args, kwargs))
        if self.seen is None or self.seen[0] is not given.tokens:
            self.seen = given.tokens, self._context(given)
        return args, {**kwargs, **self.model.family.arguments(self.seen[1], len(given))}

    def after(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Apply the guards to what the denoiser predicts."""
        if self.inside or self.hooks.guide is unguided:
            return None
        x, t = self.model.family.inputs_of(_named(module, args, kwargs))
        t = t if t.dim() == 0 else t[0]  # one for all images
        schedule = self.model.family.schedule
        eps = schedule.eps(output[0], x, t)
        if self.both:
            half = x.chunk(2)[0]
            uncond, cond = eps.chunk(2)
        else:
            half, cond, uncond = x, eps, self.eps(x, t, self.hooks.null(self.model.null()))
        cond, uncond = self.hooks.guide(self.eps, half, t, cond, uncond)
        out = schedule.out(torch.cat([uncond, cond]) if self.both else cond, x, t)
        return (out.to(output[0].dtype), *output[1:])

    def _context(self, given: Context) -> Context:
        if not self.both:
            return self.hooks.embed(given)
        half = len(given) // 2
        return cat([self.hooks.null(given[:half]), self.hooks.embed(given[half:])])


def _named(module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of the denoiser by name."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
