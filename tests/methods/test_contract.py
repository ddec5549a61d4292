"""What every method promises, checked on every file in the folder."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import same
from efface.errors import BadInput, UnknownName
from efface.method import InferenceMethod, Method
from efface.methods.finetune.method import FineTune
from efface.models.model import Model
from efface.query import Query

NAMES = registry.names("methods")
ERASE, PRESERVE = (Concept("church"),), (Concept("house"),)
QUERIES = [Query("a picture of a church", 0, 2), Query("a dog", 1, 2)]


def quick(name: str, **values: object) -> Method:
    """Make a method that is quick enough for a test, by what it declares itself."""
    cls = registry.get("methods", name)
    return registry.build(cls, **{**cls.QUICK, **values})


class InNoise(UNet2DConditionModel):
    """A denoiser of v that answers with the noise: alpha v + sigma x."""

    def forward(self, sample, timestep, *args, **kwargs):
        out = super().forward(sample, timestep, *args, **kwargs)
        kept = self.kept[torch.as_tensor(timestep).reshape(-1).long()].view(-1, 1, 1, 1)
        eps = kept.sqrt() * out[0] + (1 - kept).sqrt() * sample
        return UNet2DConditionOutput(eps) if kwargs.get("return_dict", True) else (eps,)


def in_noise(model: Model) -> Model:
    """Return a model that predicts noise, the same as a model of v."""
    pipe = copy.copy(model.pipe)
    pipe.unet, pipe.scheduler = copy.deepcopy(model.pipe.unet), copy.deepcopy(model.pipe.scheduler)
    pipe.unet.__class__, pipe.unet.kept = InNoise, pipe.scheduler.alphas_cumprod
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    return Model(pipe)


@pytest.fixture(scope="module")
def edits(_loaded: Model) -> dict[str, Edit]:
    """Return the edit of every method, made when first asked for."""

    class Made(dict[str, Edit]):
        def __missing__(self, name: str) -> Edit:
            self[name] = quick(name)(_loaded, ERASE, PRESERVE, seed=3)
            return self[name]

    return Made()


@pytest.mark.filterwarnings("ignore:prompt cut off")  # what a method says may be long for the tiny tokenizer
@pytest.mark.parametrize("name", NAMES)
class TestMethod:
    def test_the_class_is_documented_and_has_papers_defaults(self, name: str):
        cls = registry.get("methods", name)
        assert issubclass(cls, Method)
        assert registry.summary("methods", name)
        assert cls() == cls.preset()
        for field in registry.describe(cls):
            assert field.help, f"{cls.__name__} does not say what {field.name} is"
        for preset in cls.PRESETS:
            assert cls.preset(preset).preset_name

    def test_json_round_trip(self, name: str):
        for method in (registry.get("methods", name)(), quick(name)):
            assert registry.from_json(json.loads(json.dumps(registry.to_json(method)))) == method
            assert hash(method) == hash(registry.from_json(registry.to_json(method)))

    def test_an_unknown_field_gives_the_nearest_match(self, name: str):
        cls = registry.get("methods", name)
        known = [f.name for f in fields(cls)]
        with pytest.raises(UnknownName, match=f"unknown field of {name}"):
            registry.make("methods", name, nonsense=1)
        with pytest.raises(UnknownName, match=f"did you mean {known[0]!r}"):
            cls.preset("", **{known[0] + "s": 1})

    def test_the_model_is_left_as_it_was_and_the_edit_is_that_of_its_seed(self, name: str, tiny: Model, edits):
        flags = {n: w.requires_grad for n, w in tiny.weights("").items()}
        global_state = torch.get_rng_state()
        again = quick(name)(tiny, ERASE, PRESERVE, seed=3)  # the fixture checks the weights afterwards
        assert again.id == edits[name].id
        assert {n: w.requires_grad for n, w in tiny.weights("").items()} == flags
        assert torch.equal(torch.get_rng_state(), global_state)

    def test_the_edit_survives_saving(self, name: str, tiny: Model, edits, tmp_path: Path):
        edits[name].save(tmp_path / "edit.safetensors")
        back = Edit.load(tmp_path / "edit.safetensors")
        assert back.id == edits[name].id
        assert json.loads(json.dumps(back.meta)) == json.loads(json.dumps(edits[name].meta))
        with edits[name].applied(tiny) as a, back.applied(tiny) as b:
            assert torch.equal(a.generate(QUERIES), b.generate(QUERIES))

    def test_applying_restores_bit_for_bit_and_changes_the_erased_prompt(self, name: str, tiny: Model, edits):
        before = tiny.generate(QUERIES)
        with edits[name].applied(tiny) as edited:
            x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 400
            c, null = tiny.encode(["a picture of a church"]), tiny.encode([""])
            changes = [
                (ours - theirs).abs().max()
                for ours, theirs in zip(edited.denoise(x, t, c, null), tiny.denoise(x, t, c, null), strict=True)
            ]
            assert max(changes) > 0 or edited.hooks().filter is not same  # a guard on pixels acts behind the denoiser
            assert not torch.equal(
                edited.generate([Query("a church", 0, 12)]), tiny.generate([Query("a church", 0, 12)])
            )
        assert torch.equal(tiny.generate(QUERIES), before)

    def test_strength_zero_is_the_identity(self, name: str, tiny: Model, edits):
        with (0 * edits[name]).applied(tiny) as edited:
            assert torch.equal(edited.generate(QUERIES), tiny.generate(QUERIES))

    def test_the_provenance_is_complete(self, name: str, tiny: Model, edits):
        meta, method = edits[name].meta, quick(name)
        assert meta["format"] == 1
        assert meta["method"] == name
        assert meta["fields"] == registry.to_json(method)["fields"]
        assert [Concept.from_json(c) for c in meta["erase"]] == list(ERASE)
        assert [Concept.from_json(c) for c in meta["preserve"]] == list(PRESERVE)
        assert meta["seed"] == 3
        assert meta["seconds"] >= 0
        assert {"torch", "diffusers", "transformers", "efface"} <= set(meta["versions"])
        assert {"preset", "git", "created"} <= set(meta)
        assert meta["base"]["id"] == tiny.id
        assert meta["base"]["fingerprint"] == tiny.fingerprint(edits[name].names)
        assert set(meta["base"]["hashes"]) == set(edits[name].names)
        assert registry.build(registry.get("methods", name), **meta["fields"]) == method

    def test_bad_requests_are_refused_before_any_work(self, name: str, tiny: Model):
        method = quick(name)
        with pytest.raises(BadInput, match="nothing to erase"):
            method(tiny, [])
        with pytest.raises(BadInput, match="both erase and preserve church"):
            method(tiny, ["church"], ["house", "church"])
        for seed in (-1, 2**63):
            with pytest.raises(BadInput, match="seed"):
                method(tiny, "church", seed=seed)

    def test_several_concepts_at_once(self, name: str, tiny: Model):
        edit = quick(name)(tiny, ["church", Concept("neon", kind="style")])
        assert [concept["name"] for concept in edit.meta["erase"]] == ["church", "neon"]
        edit.check(tiny)

    def test_it_works_on_v_prediction_too(self, name: str, tiny2: Model):
        with quick(name)(tiny2, ERASE).applied(tiny2) as edited:
            assert edited.generate(QUERIES).isfinite().all()

    def test_a_model_of_v_is_erased_as_one_of_noise_that_predicts_the_same(self, name: str, tiny2: Model):
        """A method that took v for noise would give another edit."""
        if not issubclass(registry.get("methods", name), FineTune):
            return
        twin = in_noise(tiny2)
        x, t, c = torch.randn(2, *tiny2.latent_shape), torch.tensor([30, 900]), tiny2.encode(["a church"])
        torch.testing.assert_close(twin.eps(x, t, c), tiny2.eps(x, t, c), atol=1e-4, rtol=1e-4)
        method = quick(name, steps=1, optimizer="sgd", lr=1.0, clip=0.0, weight_decay=0.0)
        made, wanted = (method(model, ERASE, PRESERVE, seed=3).delta for model in (tiny2, twin))
        assert made.keys() == wanted.keys()
        largest = max(float(delta.abs().max()) for delta in wanted.values())
        off = max(float((made[n] - wanted[n]).abs().max()) for n in wanted)
        assert off < 0.02 * largest

    def test_it_works_on_sdxl(self, name: str, tiny_xl: Model):
        with quick(name)(tiny_xl, ERASE, PRESERVE).applied(tiny_xl) as edited:
            assert edited.generate(QUERIES).isfinite().all()

    def test_an_inference_method_changes_no_weight(self, name: str, edits):
        if issubclass(registry.get("methods", name), InferenceMethod):
            assert not edits[name].names
            assert len(edits[name].guards) == 1
        else:
            assert edits[name].names
