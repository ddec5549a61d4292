"""Methods on models with joint attention that predict a flow: what runs, what is trained, and what is refused."""

import pytest
import torch

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.method import Method
from efface.methods.esd import ESD
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.models.trajectory import partly_denoise
from efface.query import Query
from efface.training.loop import generator

CHURCH = Concept("church", anchor="house")
MAPS = {"fmn", "kpop"}  # read cross-attention


def quick(name: str, **values) -> Method:
    cls = registry.get("methods", name)
    return registry.build(cls, **{**cls.QUICK, **values})


@pytest.mark.filterwarnings("ignore:prompt cut off")  # what a method says may be long for the tiny tokenizer
@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_runs_or_says_why_it_cannot(tiny_each: Model, name: str, tmp_path):
    if name in MAPS:
        with pytest.raises(BadInput, match=r"has no cross-attention: it reads text and image in one joint attention"):
            quick(name)(tiny_each, [CHURCH])
        return
    edit = quick(name)(tiny_each, [CHURCH], ["dog"])
    edit.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert back == edit
    asked = [Query("a church", 0, 2, 3.0)]
    with back.applied(tiny_each) as edited:
        images = edited.generate(asked)
        assert images.isfinite().all()
        weights = {n: w for n, w in edited.weights("").items() if not torch.equal(w, tiny_each.weights("")[n])}
        assert set(weights) <= set(edit.names)
        c, x = tiny_each.encode(["church"]), torch.randn(1, 4, 8, 8, generator=generator(0))
        moved = (edited.eps(x, 500, c) - tiny_each.eps(x, 500, c)).abs().max()
        assert moved > 0 or edit.guards


@pytest.mark.parametrize("params", ["add_k_proj", "add_v_proj", "x-strict", "x", "context", "selfattn", "u"])
def test_parameter_sets_train_what_their_name_says(tiny_each: Model, params: str):
    edit = ESD(steps=2, ddim_steps=2, lr=1e-3, params=params)(tiny_each, [CHURCH])
    assert edit.names
    text = [name for name in edit.names if ".add_" in name or "to_add_out" in name]
    if params in ("add_k_proj", "add_v_proj"):
        assert all(f".attn.{params}." in name for name in edit.names)
    if params.startswith("x"):
        assert set(text) == set(edit.names)
    if params == "context":
        assert set(edit.names) == {f"transformer.context_embedder.{leaf}" for leaf in ("weight", "bias")}
    if params in ("selfattn", "u"):
        assert not text


def test_a_second_attention_of_the_image_is_no_text(tiny_of):
    model = tiny_of("sd3")
    assert any(".attn2." in name for name in model.weights())
    assert not any(".attn2." in n for n in model.weights() if model.family.parameter_set("x")(n))
    assert any(".attn2." in n for n in model.weights() if model.family.parameter_set("selfattn")(n))


def test_losses_are_of_the_flow_itself(tiny_each: Model):
    """Equation 7 of ESD with v in the place of ε, and the target of a flow in the place of the noise."""
    model, c, null = tiny_each, tiny_each.encode(["church"]), tiny_each.null()
    x, t = torch.randn(1, 4, 8, 8, generator=generator(1)), torch.tensor([400])
    assert torch.equal(model.eps(x, t, c), model.predict(x, t, c))
    v_c, v_0 = model.denoise(x, t, c, null)
    torch.testing.assert_close(v_c, model.predict(x, t, c), atol=1e-5, rtol=1e-5)
    edit = ESD(steps=1, ddim_steps=3, params="full", optimizer="sgd", lr=1e-12)(model, [CHURCH])
    z, t, _ = partly_denoise(model, c, null, generator(0, 0, 0), 1, 3.0, 3, jitter=True)
    v_c, v_0 = model.predict(z, t, c), model.predict(z, t, null)
    wanted = (v_c - (v_0 - (v_c - v_0))).square().mean()
    assert edit.meta["training"]["loss"][0] == pytest.approx(float(wanted), rel=1e-3)


def test_training_data_of_a_flow_has_the_velocity_as_its_target(tiny_each: Model):
    schedule = tiny_each.family.schedule
    clean, noise = (torch.randn(1, 4, 8, 8, generator=generator(i)) for i in range(2))
    a, b = (schedule.noised(clean, noise, torch.tensor([t])) for t in (200, 700))
    torch.testing.assert_close((b - a) / 0.5, schedule.target(clean, noise))  # dx/ds
    assert torch.equal(schedule.noised(clean, noise, torch.tensor([1000])), noise)


@pytest.mark.parametrize("method", [NegativePrompt(), SLD.preset("max")])
def test_guards_work_with_true_guidance(tiny_each: Model, method: Method):
    edit = method(tiny_each, [CHURCH])
    asked = [Query("a church", 0, 3, 4.0)]
    with edit.applied(tiny_each) as guarded:
        images = guarded.generate(asked)
        assert (images - tiny_each.generate(asked)).abs().max() > 1e-3
        if isinstance(method, NegativePrompt):
            c, null = tiny_each.encode(["a church"]), tiny_each.encode(["church"])
            scheduler = tiny_each.family.solver("", 3)
            x = torch.randn(1, 4, 8, 8, generator=generator_of(0))
            for t in scheduler.timesteps:
                v, v_n = tiny_each.predict(x, t, c), tiny_each.predict(x, t, null)
                x = scheduler.step(v_n + 4.0 * (v - v_n), t, x).prev_sample
            assert (tiny_each.decode(x) - images).abs().max() <= 1e-5


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", [NegativePrompt(), SLD.preset("max")])
def test_a_guard_without_true_guidance_is_refused_where_guidance_is_distilled(tiny_each: Model, method: Method):
    edit, asked = method(tiny_each, [CHURCH]), [Query("a church", 0, 2, 1.0)]
    with edit.applied(tiny_each) as guarded:
        if not tiny_each.family.distilled:
            assert guarded.generate(asked).isfinite().all()
            return
        with pytest.raises(
            BadInput, match=r"guidance is distilled into this model .* give a true guidance scale above 1"
        ):
            guarded.generate(asked)
    both = UCE()(tiny_each, ["dog"]).as_guard() + UCE()(tiny_each, [CHURCH]).as_guard()
    with both.applied(tiny_each) as mapped:  # maps of the text change both sides alike and need none
        assert mapped.generate(asked).isfinite().all()
