"""SDXL: equal to diffusers' own pipeline, and edited, trained, guarded, attached and saved like Stable Diffusion."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadModel
from efface.method import Method
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.task_vector import TaskVector
from efface.methods.uce import UCE
from efface.models import schedulers
from efface.models.attach import attach
from efface.models.family import family_of
from efface.models.model import Model
from efface.query import Query

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

CHURCH = Concept("church")
METHODS = {
    "uce": UCE(),
    "esd": ESD(steps=2, ddim_steps=3, lr=1e-3),
    "task_vector": TaskVector(steps=2, images=2, image_steps=2, lr=1e-3),
    "negative": NegativePrompt(),
    "sld": SLD.preset("max"),
}


def by_pipeline(pipe, queries: list[Query]) -> Tensor:
    """Generate with the diffusers pipeline; the queries share steps, guidance and solver."""
    pipe.scheduler = schedulers.make(pipe, queries[0].solver)
    return pipe(
        [query.prompt for query in queries],
        num_inference_steps=queries[0].steps,
        guidance_scale=queries[0].guidance,
        generator=[torch.Generator().manual_seed(query.seed) for query in queries],
        output_type="pt",
    ).images


def queries(guidance: float = 7.5, solver: str = "") -> list[Query]:
    return [Query("a church", 3, 4, guidance, solver=solver), Query("a red bus", 4, 4, guidance, solver=solver)]


def own(model: Model):
    """Return a pipeline that shares nothing that attaching changes with the test session's."""
    pipe = copy.copy(model.pipe)
    pipe.unet = copy.deepcopy(model.denoiser)
    return pipe


@pytest.mark.parametrize("solver", ["", "ddim", "euler-a", "dpm++"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_images_equal_those_of_the_pipeline(tiny_xl: Model, guidance: float, solver: str):
    asked = queries(guidance, solver)
    ours = tiny_xl.generate(asked)
    assert (ours - by_pipeline(own(tiny_xl), asked)).abs().max() <= 1e-5
    assert (ours[0] - tiny_xl.generate([Query("a dog", 3, 4, guidance, solver=solver)])[0]).abs().max() > 1e-3


def test_the_family_is_recognised_and_unknown_pipelines_are_refused(tiny: Model, tiny_xl: Model):
    assert type(tiny_xl.family).TITLE == "SDXL"
    assert type(tiny.family) is not type(tiny_xl.family)
    with pytest.raises(BadModel, match=r"of no model family that efface knows \(known: .*SDXL"):
        family_of(object())


def test_the_context_is_both_encoders_tokens_and_the_pooled_vector(tiny_xl: Model):
    theirs, _, pooled, _ = tiny_xl.pipe.encode_prompt(["a church", "a dog"], do_classifier_free_guidance=False)
    ours = tiny_xl.encode(["a church", "a dog"])
    assert torch.equal(ours.tokens, theirs)
    assert ours.pooled is not None
    assert torch.equal(ours.pooled, pooled)
    assert ours.tokens.shape[2] == tiny_xl.width
    assert not tiny_xl.null().tokens.any()  # force_zeros_for_empty_prompt
    assert tiny_xl.encode([""]).tokens.any()


def test_the_pooled_vector_matters_and_a_query_may_leave_it_to_its_prompt(tiny_xl: Model):
    church, dog = tiny_xl.encode(["a church"]), tiny_xl.encode(["a dog"])
    by_prompt = tiny_xl.generate([Query("a church", 0, 3)])
    same = tiny_xl.generate([Query("a church", 0, 3, context=Context(church.tokens))])
    other = tiny_xl.generate([Query("a church", 0, 3, context=Context(church.tokens, dog.pooled))])
    assert (same - by_prompt).abs().max() <= 1e-5
    assert (other - by_prompt).abs().max() > 1e-3


def test_the_context_survives_the_denoisers_arguments(tiny_xl: Model):
    c = tiny_xl.encode(["a church", "a dog"])
    back = tiny_xl.family.context_of(tiny_xl.family.arguments(c, 2))
    assert torch.equal(back.tokens, c.tokens)
    assert back.pooled is not None
    assert torch.equal(back.pooled, c.pooled)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_applies_attaches_saves_and_loads(tiny_xl: Model, name: str, tmp_path: Path):
    method: Method = METHODS[name]
    edit = method(tiny_xl, [CHURCH], ["house"] if name == "uce" else [])
    edit.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert back == edit
    with back.applied(tiny_xl) as edited:
        images = edited.generate(queries())
    assert (images[0] - tiny_xl.generate(queries())[0]).abs().max() > 1e-3
    pipe = own(tiny_xl)
    attach(back, pipe)
    assert (by_pipeline(pipe, queries()) - images).abs().max() <= 1e-5


def test_a_closed_form_edit_equals_its_map_and_its_guard(tiny_xl: Model):
    edit = UCE(ridge=1e-4)(tiny_xl, [Concept("church", anchor="house")])
    assert set(edit.names) == set(tiny_xl.text_weights())
    word = [tiny_xl.tokens(text).subject for text in ("church", "house")]
    church, house = (tiny_xl.encode([text]).tokens[0, at] for text, at in zip(("church", "house"), word, strict=True))
    name = edit.names[0]
    weight = tiny_xl.weights()[name]
    with edit.applied(tiny_xl) as edited:
        got, wanted = edited.weights()[name] @ church, weight @ house
        assert (got - wanted).norm() < 0.01 * (weight @ church - wanted).norm()
        images = edited.generate(queries())
    with edit.as_guard().applied(tiny_xl) as guarded:
        assert (guarded.generate(queries()) - images).abs().max() <= 1e-5


def test_an_edit_of_another_family_is_refused(tiny: Model, tiny_xl: Model):
    from efface.errors import BadEdit

    with pytest.raises(BadEdit, match="another architecture"):
        UCE()(tiny, [CHURCH]).check(tiny_xl)


def test_parameter_sets_and_gradient_checkpointing(tiny_xl: Model):
    plain = ESD(steps=2, ddim_steps=2, params="x-strict")(tiny_xl, [CHURCH])
    assert set(plain.names) <= set(tiny_xl.text_weights())
    spare = ESD(steps=2, ddim_steps=2, params="x-strict", gradient_checkpointing=True)(tiny_xl, [CHURCH])
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-6, rtol=1e-3)


def test_in_half_precision_the_autoencoder_that_would_overflow_stays_in_fp32(folder_xl: Path, folder: Path):
    half = Model.load(folder_xl, dtype=torch.float16)
    assert {part: half.part(part).dtype for part in ("unet", "text_encoder_2", "vae")} == {
        "unet": torch.float16,
        "text_encoder_2": torch.float16,
        "vae": torch.float32,
    }
    assert half.generate([Query("a church", 0, 2)]).isfinite().all()
    assert Model.load(folder, dtype=torch.float16).part("vae").dtype == torch.float16
