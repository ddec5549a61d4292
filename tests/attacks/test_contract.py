"""What every attack promises, checked on every file in the folder."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from efface import registry
from efface.attack import Attack, Target
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.finding import Finding
from efface.judge import Judge, Profile
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.query import Query
from efface.training.checkpoints import checkpoints

NAMES = registry.names("attacks")
CHURCH = Concept("church", ("a picture of a church",), keywords=("cross", "building"))
QUERIES = [Query("a picture of a church", seed, steps=3, guidance=3.0) for seed in (0, 1)]
MIXED = [*QUERIES, Query("a picture of a dog", 2, steps=3, guidance=3.0)]  # some attacks mix prompts


class Redness(Judge):
    """Sees a church where an image is red, a house where it is not; differentiable."""

    classes = ("church", "house", "dog")
    reads_text = True

    @property
    def profile(self) -> Profile:
        return Profile(evaluator="redness", sha256={"": "0"}, classes=2)

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        red = (8 * (images[:, 0] - images[:, 2])).mean((1, 2)).sigmoid()
        return torch.stack([red, 1 - red, red / 2], 1)

    def clip_score(self, images: torch.Tensor, texts) -> torch.Tensor:
        return images[:, 0].mean((1, 2))

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)


class Blueness(Redness):
    """Sees a church where an image is blue."""

    @property
    def profile(self) -> Profile:
        return Profile(evaluator="blueness", sha256={"": "0"}, classes=2)

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        return super().objects(images.flip(1))


def quick(name: str) -> Attack:
    cls = registry.get("attacks", name)
    return registry.build(cls, **cls.QUICK)


def edits() -> dict[str, Edit]:
    guards = {"negative": NegativePrompt(), "sld": SLD(warmup=0)}
    return {"weights": UCE(), **guards}


@pytest.fixture(params=["weights", pytest.param("negative", marks=pytest.mark.slow), "sld"])
def target(request: pytest.FixtureRequest, tiny: Model):
    edit = edits()[request.param](tiny, [CHURCH])
    with edit.applied(tiny) as edited:
        yield Target(edited, Redness(), tiny)


def same(a: Finding, b: Finding) -> bool:
    about = [timeless(one.about) for one in (a, b)]
    return a.id == b.id and a.scores == b.scores and about[0] == about[1] and dict(a.cost) == dict(b.cost)


def timeless(value):
    """Leave out seconds."""
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    return {k: timeless(v) for k, v in value.items() if k != "seconds"} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", NAMES)
class TestAttack:
    def test_it_is_documented_and_has_a_json_form(self, name: str):
        cls = registry.get("attacks", name)
        assert issubclass(cls, Attack)
        assert registry.summary("attacks", name)
        assert cls() == cls.preset()
        for attack in (cls(), quick(name), *(cls.preset(preset) for preset in cls.PRESETS)):
            assert registry.from_json(json.loads(json.dumps(registry.to_json(attack)))) == attack
        for field in registry.describe(cls):
            assert field.help, f"{cls.__name__} does not say what {field.name} is"
            assert field.range or field.type not in (int, float), f"{field.name} has no range"

    def test_the_finding_is_a_file_that_replays(self, name: str, target: Target, tmp_path):
        if name == "derived" and target.edited.guards:  # it inverts matrices, which these guards leave alone
            with pytest.raises(BadInput, match="nothing to derive"):
                quick(name)(target, CHURCH, MIXED, seed=5)
            return
        found = quick(name)(target, CHURCH, MIXED, seed=5)
        assert found.queries
        assert len(found.scores) == len(found.queries)
        assert all(isinstance(score, float) for score in found.scores)
        assert found.cost["calls"] >= 0
        assert found.meta["attack"] == name
        assert found.concept == CHURCH
        assert (found.edit is not None) == type(quick(name)).CHANGES_WEIGHTS
        found.save(tmp_path / "f.safetensors")
        read = Finding.load(tmp_path / "f.safetensors")
        assert same(found, read)
        few = replace(found, queries=found.queries[:3], scores=found.scores[:3])
        again = replace(read, queries=read.queries[:3], scores=read.scores[:3])
        images = few.replay(target.edited)
        assert torch.equal(images, again.replay(target.edited))
        assert bool(images.isfinite().all())

    def test_it_says_what_each_query_was_found_for(self, name: str, tiny: Model):
        """Relearned weights answer each query with itself, and no attack answers one prompt with another's."""
        with UCE()(tiny, [CHURCH]).applied(tiny) as edited:
            found = quick(name)(Target(edited, Redness(), tiny), CHURCH, MIXED, seed=3)
        assert len(found.given) in (0, len(found.queries))
        assert set(found.given) <= set(range(len(MIXED)))
        assert found.meta["queries"] == [[query.prompt, query.seed] for query in MIXED]
        asked = found.answers(MIXED)
        for number in set(found.given):
            assert asked[number] is found.queries[found.given.index(number)]
        if found.edit is not None:
            assert asked == tuple(MIXED)

    def test_the_calls_of_the_denoiser_are_those_it_counts(self, name: str, target: Target, tmp_path, monkeypatch):
        """Also where guards add calls, and where a solver makes more of them than it has steps (the tiny model's)."""
        if name == "derived" and target.edited.guards:
            return
        monkeypatch.setenv("EFFACE_HOME", str(tmp_path))  # what was kept would not be made again
        rows, real = [], UNet2DConditionModel.forward

        def counted(unet, x, *args, **kwargs):
            rows.append((len(x), torch.is_grad_enabled()))
            return real(unet, x, *args, **kwargs)

        monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
        found = quick(name)(target, CHURCH, MIXED, seed=5)
        assert found.cost["calls"] == sum(count for count, _ in rows)
        assert set(found.cost) == {"images", "calls", "backward", "texts"}

    def test_it_is_deterministic_in_its_seed_and_leaves_the_models_alone(
        self, name: str, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with UCE()(tiny, [CHURCH]).applied(tiny) as edited:
            target = Target(edited, Redness(), tiny)
            first = quick(name)(target, CHURCH, MIXED, seed=1)
            weights = (*edited.weights("").values(), *tiny.weights("").values())
            before = [p.requires_grad_().requires_grad for p in weights]  # as a pipeline of the user's own may be
            kept = quick(name)(target, CHURCH, MIXED, seed=1)  # of the first, perhaps
            monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "other"))
            assert same(first, kept)
            assert same(first, quick(name)(target, CHURCH, MIXED, seed=1))
            assert [p.requires_grad for p in weights] == before
            assert all(p.grad is None for p in weights)

    def test_a_checkpoint_is_not_taken_for_that_of_another_search(self, name: str, tiny: Model, tmp_path: Path):
        """In the folder of a search, another judge, original model or concept is refused, or makes no difference."""
        attack, dog = quick(name), Concept("dog", ("a picture of a dog",), keywords=("red", "fox"))
        with UCE()(tiny, [CHURCH]).applied(tiny) as edited:
            other = tiny.edited({n: 1.1 * tiny.weights()[n].detach() for n in tiny.text_weights()}, id="louder")
            first = (Target(edited, Redness(), tiny), CHURCH)
            others = [(Target(edited, Blueness(), tiny), CHURCH), (Target(edited, Redness(), other), CHURCH)]
            others.append((Target(edited, Redness(), tiny), dog))
            with checkpoints(tmp_path / "run", every=1):
                attack(*first, MIXED, seed=1)
            for target, concept in others:
                found = None
                with suppress(BadInput), checkpoints(tmp_path / "run"):
                    found = attack(target, concept, MIXED, seed=1)
                assert found is None or same(found, attack(target, concept, MIXED, seed=1))

    def test_it_runs_on_sdxl(self, name: str, tiny_xl: Model):
        with UCE()(tiny_xl, [CHURCH]).applied(tiny_xl) as edited:
            found = quick(name)(Target(edited, Redness(), tiny_xl), CHURCH, MIXED, seed=2)
            few = replace(found, queries=found.queries[:2], scores=found.scores[:2])
            assert bool(few.replay(edited).isfinite().all())

    def test_it_runs_on_flows_too(self, name: str, tiny_each: Model):
        with UCE()(tiny_each, [CHURCH]).applied(tiny_each) as edited:
            found = quick(name)(Target(edited, Redness(), tiny_each), CHURCH, MIXED, seed=2)
            few = replace(found, queries=found.queries[:2], scores=found.scores[:2])
            assert bool(few.replay(edited).isfinite().all())

    def test_it_says_what_it_lacks(self, name: str, tiny: Model, lamp):
        attack = quick(name)
        with pytest.raises(BadInput, match="at least one query"):
            attack(Target(tiny, Redness(), tiny), CHURCH, [])
        if "original" in attack.NEEDS:
            with pytest.raises(BadInput, match="original model"):
                attack(Target(tiny, Redness()), CHURCH, QUERIES)
        if "judge" in attack.NEEDS:
            with pytest.raises(BadInput, match="judge"):
                attack(Target(tiny, None, tiny), CHURCH, QUERIES)
        if "text encoder" in attack.NEEDS:
            with pytest.raises(BadInput, match="text encoder"):
                attack(Target(lamp.model, Redness(), lamp.model), CHURCH, QUERIES)
