import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard, Hooks
from efface.edits.parts import TextMap
from efface.errors import BadEdit
from efface.method import InferenceMethod
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.models import schedulers
from efface.models.attach import attach
from efface.models.model import Model
from efface.query import Query

CHURCH = (Concept("church"),)
GUARDS = {"negative": NegativePrompt(), "sld": SLD(warmup=1, scale=20.0, threshold=1.0)}


def own(model: Model):
    """Return a pipeline that shares nothing that attaching changes with the test session's."""
    pipe = copy.copy(model.pipe)
    pipe.unet = copy.deepcopy(model.denoiser)
    return pipe


def draw(pipe, queries: list[Query], **options):
    pipe.scheduler = schedulers.make(pipe, queries[0].solver)
    return pipe(
        [query.prompt for query in queries],
        num_inference_steps=queries[0].steps,
        guidance_scale=queries[0].guidance,
        generator=[torch.Generator().manual_seed(query.seed) for query in queries],
        **{"output_type": "pt", **options},
    ).images


def queries(guidance: float = 7.5, solver: str = "") -> list[Query]:
    return [Query("a dog", 3, 4, guidance, solver=solver), Query("a red bus", 4, 4, guidance, solver=solver)]


def map_edit(model: Model) -> Edit:
    generator = torch.Generator().manual_seed(0)
    left = 0.1 * torch.randn(model.width, 2, generator=generator)
    text_map = TextMap(tuple(model.text_weights()), left, torch.randn(2, model.width, generator=generator))
    return Edit(maps=(text_map,), meta={"base": model.base(model.text_weights())})


def test_weights_are_attached_for_good(tiny: Model):
    edit, pipe = map_edit(tiny), own(tiny)
    attach(edit, pipe)
    with edit.applied(tiny) as edited:
        ours = edited.generate(queries())
    assert (draw(pipe, queries()) - ours).abs().max() <= 1e-6
    assert (tiny.generate(queries()) - ours).abs().max() > 1e-3
    assert torch.equal(pipe.unet.conv_in.weight, tiny.denoiser.conv_in.weight)


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("name", GUARDS)
@pytest.mark.parametrize("which", ["tiny", "tiny2"])
def test_guards_are_attached(which: str, name: str, guidance: float, request: pytest.FixtureRequest):
    model: Model = request.getfixturevalue(which)
    edit, pipe = Edit(guards=(Guard(GUARDS[name], CHURCH),)), own(model)
    attach(edit, pipe)
    with edit.applied(model) as guarded:
        ours = guarded.generate(queries(guidance))
    for _ in range(2):  # what a guard remembers begins anew with every call
        assert (draw(pipe, queries(guidance)) - ours).abs().max() <= 1e-5
    if guidance != 1 or name == "sld":
        assert (model.generate(queries(guidance)) - ours).abs().max() > 1e-3


def test_an_edit_of_everything_is_attached(tiny: Model):
    edit = map_edit(tiny).as_guard() + Edit(guards=(Guard(GUARDS["sld"], CHURCH),))
    pipe = own(tiny)
    attach(edit, pipe)
    with edit.applied(tiny) as guarded:
        ours = guarded.generate(queries(solver="ddim"))
    assert (draw(pipe, queries(solver="ddim")) - ours).abs().max() <= 1e-5


def test_attaching_twice_adds_up(tiny: Model):
    pipe = own(tiny)
    first, second = map_edit(tiny).as_guard(), NegativePrompt()(tiny, "church")
    attach(first, pipe)
    attach(second, pipe)
    with (first + second).applied(tiny) as guarded:
        ours = guarded.generate(queries())
    assert (draw(pipe, queries()) - ours).abs().max() <= 1e-6


class Halve(InferenceMethod):
    """Halve the pixels."""

    def start(self, model: Model, erase) -> Hooks:
        return Hooks(filter=lambda images: images / 2)


def test_a_guard_on_pixels_is_attached_in_every_output_form(tiny: Model):
    pipe = own(tiny)
    plain = draw(pipe, queries())
    attach(Edit(guards=(Guard(Halve(), CHURCH),)), pipe)
    halved: Tensor = draw(pipe, queries())
    assert torch.allclose(halved, plain / 2)
    assert np.allclose(draw(pipe, queries(), output_type="np"), halved.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pictures = draw(pipe, queries(), output_type="pil")
    assert np.abs(np.asarray(pictures[0]) / 255 - halved[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(BadEdit, match="this pipeline cannot return latents"):
        draw(pipe, queries(), output_type="latent")
    assert pipe("a dog", num_inference_steps=2, output_type="pt", return_dict=False)[0].max() <= 0.5


def test_the_pipeline_stays_what_it_was_otherwise(tiny: Model):
    pipe = own(tiny)
    before = type(pipe)
    attach(NegativePrompt()(tiny, "church"), pipe)
    assert isinstance(pipe, before)
    assert type(pipe).__name__ == before.__name__
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    draw(pipe, queries())
    assert not pipe.unet._forward_hooks  # between calls the denoiser is bare
    untouched = own(tiny)
    assert type(untouched) is before


def test_a_misfit_changes_nothing(tiny: Model, tiny2: Model):
    edit, pipe = map_edit(tiny), own(tiny2)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    with pytest.raises(BadEdit):
        attach(edit, pipe)
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())


def test_a_guard_cannot_be_attached_to_a_pipeline_without_guidance(tiny: Model):
    class Other:
        unet = tiny.denoiser
        text_encoder = vae = None
        scheduler = tiny.part("scheduler")

    with pytest.raises(BadEdit, match="cannot be attached to a Other"):
        attach(NegativePrompt()(tiny, "church"), Other())  # pyright: ignore[reportArgumentType]


def test_guards_are_attached_in_half_precision(folder2, tiny2: Model):
    pipe = Model.load(folder2, dtype=torch.bfloat16).pipe
    attach(NegativePrompt()(tiny2, "church"), pipe)
    attach(Edit(guards=(Guard(GUARDS["sld"], CHURCH),)), pipe)
    assert draw(pipe, queries(solver="ddim")).isfinite().all()


def test_an_edit_of_another_base_is_attached_only_when_any_base_says_so(tiny: Model):
    edit, pipe = map_edit(tiny), own(tiny)
    name = edit.names[0].removeprefix("unet.")
    with torch.no_grad():
        pipe.unet.get_parameter(name).mul_(1.5)
    before = pipe.unet.get_parameter(name).clone()
    with pytest.raises(BadEdit, match="any_base applies it"):
        attach(edit, pipe)
    assert torch.equal(pipe.unet.get_parameter(name), before)
    attach(edit, pipe, any_base=True)
    wanted = before + edit.maps[0].delta(before)
    torch.testing.assert_close(pipe.unet.get_parameter(name), wanted)
