import pytest
import torch

from efface.attack import Target
from efface.attacks.concept_vector import ConceptVector
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.models.model import Model
from efface.query import Query

DOG = Concept("dog")
LIKE = [Query("a red fox", seed=5, steps=1), Query("a fox", seed=6, steps=1)]


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
@torch.no_grad()
def test_it_adds_eta_times_the_mean_difference(name, request):
    model = request.getfixturevalue(name)
    attack = ConceptVector(eta=(3.0, 0.9), prompts_with=("a dog", "red dog"), prompts_without=("a", "red"))
    found = attack(Target(model), DOG, LIKE)
    assert found.about["eta"] == [3.0, 3.0, 0.9, 0.9]
    shown, absent = model.encode(["a dog", "red dog"]), model.encode(["a", "red"])
    for i, query in enumerate(found.queries):
        own, eta = model.encode([LIKE[i % 2].prompt]), found.about["eta"][i]
        for part in ("tokens", "pooled"):
            if getattr(own, part) is not None:
                difference = (getattr(shown, part) - getattr(absent, part)).mean(0)
                expected = getattr(own, part)[0] + eta * difference
                torch.testing.assert_close(getattr(query.context, part)[0], expected)
        assert query.seed == LIKE[i % 2].seed
    assert found.scores == (0.0,) * 4
    assert found.replay(model).shape == (4, 3, *[model.family.image_size] * 2)


def test_a_judge_ranks(tiny, eye, attack_on):
    target = attack_on(tiny, eye(), "negative")
    found = ConceptVector(eta=(1.0, 2.0, 40.0))(target, DOG, LIKE)
    seen = target.seen(found.replay(target.edited), DOG)
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=1e-3)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert sorted(found.about["eta"]) == [1.0, 1.0, 2.0, 2.0, 40.0, 40.0]
    assert found.cost == {"images": 6, "calls": 12, "backward": 0, "texts": 2 * 6 + 2}


def test_presets_and_bad_input(tiny, eye, lamp, monkeypatch):
    assert ConceptVector.preset("rece").eta == (3.0,)
    assert ConceptVector.preset("rece-low").eta == (0.9,)
    with pytest.raises(BadInput, match="at least one strength"):
        ConceptVector(eta=())
    with pytest.raises(BadInput, match="come in pairs"):
        ConceptVector(prompts_with=("a dog",))
    with pytest.raises(BadInput, match="no text encoder"):
        ConceptVector()(Target(lamp.model), "0", LIKE)
    monkeypatch.setattr(Model, "generate", None)  # it is said before any image
    with pytest.raises(UnknownName, match="class of the judge 'castle'"):
        ConceptVector()(Target(tiny, eye()), "castle", LIKE)
