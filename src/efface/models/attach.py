"""Attach an edit for good to a diffusers pipeline: weights in place, guards around the pipeline's own loop."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.edits.guard import Hooks, same, unguided
from efface.errors import BadEdit
from efface.models import schedulers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from efface.edits.edit import Edit
    from efface.models.model import Model


def attach(edit: "Edit", pipe: "DiffusionPipeline", any_base: bool = False) -> None:
    """Change the pipeline so that `pipe(prompt)` draws the edited images; see `Edit.attach`."""
    from efface.models.model import Model

    model = Model(pipe)
    edit.check(model, any_base)
    guided = getattr(type(pipe), "do_classifier_free_guidance", None) is not None and hasattr(pipe, "unet")
    if edit.guards and not guided:
        raise BadEdit(f"a guard cannot be attached to a {type(pipe).__name__}: use `applied` on a Model instead")
    weights = model.weights("")
    new = edit.new_weights(model, any_base)
    with torch.no_grad():
        for name, value in new.items():
            weights[name].copy_(value)
    if edit.guards:
        _guard(pipe, edit.guards)


def _guard(pipe: Any, guards: tuple[Any, ...]) -> None:
    """Give the pipeline a class of its own whose call runs under the guards."""
    if hasattr(pipe, "_efface_guards"):
        pipe._efface_guards += guards
        return
    pipe._efface_guards = guards
    plain = type(pipe)

    @torch.no_grad()
    @functools.wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        from efface.models.model import Model

        model = Model(self)
        hooks = model.guarded(*self._efface_guards).hooks()
        wanted = kwargs.get("output_type", "pil")
        if hooks.filter is not same:
            if wanted == "latent":
                raise BadEdit("a guard on pixels is attached: latents cannot be had from this pipeline")
            kwargs["output_type"] = "pt"
        with _hooked(model, hooks):
            output = plain.__call__(self, *args, **kwargs)
        return output if hooks.filter is same else _filtered(self, output, hooks, wanted)

    pipe.__class__ = type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__})


def _filtered(pipe: Any, output: Any, hooks: Hooks, wanted: str) -> Any:
    """Run the pixel guard on what the pipeline drew and return it in the form that was asked for."""
    images = hooks.filter(output[0])
    if wanted != "pt":
        images = pipe.image_processor.pt_to_numpy(images)
        images = pipe.image_processor.numpy_to_pil(images) if wanted == "pil" else images
    if isinstance(output, tuple):
        return (images, *output[1:])
    output.images = images
    return output


@contextmanager
def _hooked(model: "Model", hooks: Hooks) -> Iterator[None]:
    """Let the guards act on every pass of the denoiser inside the block."""
    before, after = _hook_pair(model, hooks)
    handles = [
        model.unet.register_forward_pre_hook(before, with_kwargs=True),
        model.unet.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_pair(model: "Model", hooks: Hooks) -> tuple[Any, Any]:
    inside = False  # the guards' own passes go through unguarded
    seen: tuple[Tensor, Tensor] | None = None  # contexts before and after the guards: the same for all steps

    def eps(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        nonlocal inside
        inside = True
        try:
            return model.eps(x, t, c)
        finally:
            inside = False

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        nonlocal seen
        if inside:
            return None
        context = kwargs["encoder_hidden_states"]
        if seen is None or seen[0] is not context:
            seen = context, _contexts(model, hooks, context)
        return args, {**kwargs, "encoder_hidden_states": seen[1]}

    def after(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if inside or hooks.guide is unguided:
            return None
        x, t = args[0], torch.as_tensor(args[1])
        both = model.pipe.do_classifier_free_guidance  # pyright: ignore[reportAttributeAccessIssue]
        levels = model.levels(t)
        raw = schedulers.to_eps(output[0], x, *levels, model.prediction)
        if both:
            x = x.chunk(2)[0]
            uncond, cond = raw.chunk(2)
        else:
            uncond, cond = eps(x, t, hooks.null(model.encode([""]))), raw
        cond, uncond = hooks.guide(eps, x, t, cond, uncond)
        guided = schedulers.from_eps(torch.cat([uncond, cond]) if both else cond, args[0], *levels, model.prediction)
        return (guided.to(output[0].dtype), *output[1:])

    return before, after


def _contexts(model: "Model", hooks: Hooks, context: Tensor) -> Tensor:
    if not model.pipe.do_classifier_free_guidance:  # pyright: ignore[reportAttributeAccessIssue]
        return hooks.embed(context)
    null, cond = context.chunk(2)
    return torch.cat([hooks.null(null), hooks.embed(cond)])
