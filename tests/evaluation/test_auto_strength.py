"""Automatic strength: the smallest that fulfils both rules, from one training."""

from dataclasses import replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.diverse_inversion import DiverseInversion
from efface.concept import Concept, table
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.auto_strength import CONTROL, auto_strength, check_learned, controls, threshold
from efface.finding import Finding
from efface.judge import Judge, Profile
from efface.methods.negative import NegativePrompt
from efface.models.model import Model
from efface.query import Query

CHURCH = Concept("church", ("a church",))
SAMPLING = {"steps": 2, "guidance": 1.0}


class Near(Judge):
    """The similarity of an image with the name is how near it is to the un-erased model's image of it."""

    classes, reads_text, profile = ("church",), True, Profile(evaluator="near")

    def __init__(self, model: Model):
        self.of = {q.prompt: model.generate([q])[0] for q in [Query(t, 0, **SAMPLING) for t in ("a church", "a dog")]}

    def objects(self, images):
        return torch.ones(len(images), 1)

    def clip_score(self, images, texts):
        wanted = torch.stack([self.of["a church" if text == "church" else text] for text in texts])
        return torch.exp(-200 * (images - wanted).square().mean((1, 2, 3)))


@pytest.fixture
def edit(tiny: Model) -> Edit:
    names = tiny.text_weights()
    delta = {name: -0.5 * tiny.weights()[name].detach() for name in names}
    return Edit(delta=delta, meta={"base": tiny.base(names)})


def test_the_smallest_strength_below_the_threshold_that_keeps_the_control(tiny: Model, edit: Edit) -> None:
    learned = Finding((Query("", 0, context=tiny.encode(["a church"]), **SAMPLING),), (0.0,))
    judge, grid = Near(tiny), (0.5, 1.0, 2.0)
    found = auto_strength(tiny, edit, CHURCH, judge, learned, ["a dog"], SAMPLING, 2.0, 0.0, grid, bisect=0)
    assert found.chosen is not None
    assert found.chosen.strength == 0.5
    scores = {one.strength: one.score.value for one in found.tried}
    assert scores[2.0] != scores[0.5]
    assert all(one.score.n == 5 for one in found.tried)  # four images of the name, one of the embedding
    none = auto_strength(tiny, edit, CHURCH, judge, learned, ["a dog"], SAMPLING, -1.0, 0.0, grid, bisect=0)
    assert none.chosen is None
    assert "no strength" in none.why
    with edit.applied(tiny) as edited:  # strength 1 is the edit itself
        own = judge.clip_score(edited.generate([Query("a church", 0, **SAMPLING)]), ["church"])
    assert scores[1.0] >= float(own) - 1e-6


def test_embeddings_of_something_else_are_refused(tiny: Model, edit: Edit) -> None:
    attack = DiverseInversion(**{**DiverseInversion.QUICK, "steps": 1, "images": 1})
    like = Query("a church", 0, **SAMPLING)
    rolled = tiny.edited({n: tiny.weights()[n].detach().roll(1, 0) for n in tiny.text_weights()}, id="rolled")
    own = attack(Target(tiny, None, tiny), CHURCH, like)
    for learned in (own, attack(Target(rolled, None, tiny), CHURCH, like)):
        check_learned(learned, tiny, CHURCH)
    with pytest.raises(BadInput, match="of church, not of dog"):
        check_learned(own, tiny, Concept("dog"))
    other = replace(attack, through="edited")(Target(rolled, None, tiny), CHURCH, like)
    for learned, model in ((own, rolled), (other, tiny)):
        with pytest.raises(BadInput, match="learned on another model"):
            auto_strength(model, edit, CHURCH, Near(tiny), learned, ["a dog"], SAMPLING, 2.0)
    derived = Finding(meta={**own.meta, "attack": "derived"})
    with pytest.raises(BadInput, match="are of derived"):
        check_learned(derived, tiny, CHURCH)


def test_the_control_is_a_share_of_the_un_erased_models(tiny: Model, edit: Edit) -> None:
    learned = Finding((Query("", 0, context=tiny.encode(["a church"]), **SAMPLING),), (0.0,))
    kept = auto_strength(tiny, edit, CHURCH, Near(tiny), learned, ["a dog"], SAMPLING, 2.0, 1.0, (1e-6,), bisect=0)
    assert kept.least is not None
    assert kept.tried[0].control == pytest.approx(kept.least, rel=1e-3)  # an edit of no strength changes nothing


def test_the_threshold_is_a_quantile_of_other_concepts(tiny: Model) -> None:
    judge = Near(tiny)
    images = tiny.generate([Query("a dog", seed, **SAMPLING) for seed in range(4)])
    own = judge.clip_score(images, ["church"] * 4)
    assert threshold(tiny, judge, CHURCH, ["a dog"], SAMPLING) == pytest.approx(float(own.quantile(0.95)))


def test_controls() -> None:
    assert controls(CHURCH, {}) == CONTROL
    known = table("mini")
    found = controls(known["church"], known)
    assert len(set(found)) == 6
    assert not any("church" in text for text in found)


def test_guards_have_no_strength(tiny: Model) -> None:
    guard = NegativePrompt()(tiny, [CHURCH])
    with pytest.raises(BadInput, match="no strength to choose"):
        auto_strength(tiny, guard, CHURCH, Near(tiny), Finding(), ["a dog"], SAMPLING, 0.2)
