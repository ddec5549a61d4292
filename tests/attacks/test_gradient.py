import pytest
import torch

from efface.attack import Target
from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.judge import Judge, Profile
from efface.query import Query

LIKE = Query("0", steps=2, guidance=1.0)
ZERO = Concept("0", prompts=("0",))


def nearness(found, w):
    return float(found.queries[0].context.tokens[0, 0] @ w)


@pytest.mark.parametrize("through", ["sampler", "eps"])
def test_it_ascends_to_the_concept(lamp, through):
    """The model's images are brightest, and its predictions best, at w."""
    attack = Gradient(through=through, restarts=6, iterations=60, noises=2, steps=1, images=4, ranking=2, lr=0.1)
    before = {name: w.detach().clone() for name, w in lamp.model.weights("").items()}
    found = attack(Target(lamp.model, lamp.judge, lamp.model), ZERO, LIKE)
    assert nearness(found, lamp.w) > 0.99
    norms = torch.stack([query.context.tokens[0, 0].norm() for query in found.queries])
    torch.testing.assert_close(norms, torch.ones(6))
    assert found.about["loss"][-1] < found.about["loss"][0]
    assert all(torch.equal(w, before[name]) for name, w in lamp.model.weights("").items())


def test_it_beats_the_grid_at_a_fraction_of_its_cost(lamp):
    target = Target(lamp.model, lamp.judge, lamp.model)
    grid = Grid(values=3, steps=(1,), images=(1,), survivors=(1,))(target, "0", LIKE)
    lamp.judge.seen = 0
    ascended = Gradient(restarts=2, iterations=30, noises=1, steps=1, ranking=1)(target, "0", LIKE)
    assert ascended.scores[0] >= grid.scores[0]
    assert lamp.judge.seen == ascended.cost["images"] < grid.cost["images"] / 50


def test_seed(lamp):
    attack, target = Gradient(restarts=2, iterations=2, noises=1, ranking=1), Target(lamp.model, lamp.judge)
    one, two, other = (attack(target, "0", LIKE, seed) for seed in (0, 0, 1))
    assert one.queries == two.queries
    assert one.queries != other.queries


def test_through_eps_it_attacks_stable_diffusion(tiny):
    """It works with contexts of many tokens and with a judge without gradient."""

    class Anything(Judge):
        classes, profile = ("church",), Profile(evaluator="anything")

        def objects(self, images):
            return torch.ones(len(images), 1)

    attack = Gradient(through="eps", restarts=2, iterations=2, noises=1, images=2, ranking=1, radius=0.0)
    found = attack(Target(tiny, Anything(), tiny), "church", Query("", steps=1, guidance=1.0))
    assert found.queries[0].context.tokens.shape == (1, 16, 32)
    assert tiny.generate(found.queries[:1]).shape == (1, 3, 16, 16)


def test_bad_settings(lamp):
    for fields, message in [
        ({"restarts": 0}, "restarts must be from 1 to 4096, got 0"),
        ({"lr": 0.0}, "lr must be above 0 and at most 100, got 0"),
        ({"radius": -1.0}, "radius must be from 0 to"),
    ]:
        with pytest.raises(BadInput, match=message):
            Gradient(**fields)
    with pytest.raises(BadInput, match="needs the original model"):
        Gradient(through="eps")(Target(lamp.model, lamp.judge), "0", LIKE)
    with pytest.raises(UnknownName, match="class of the judge 'dog'"):
        Gradient(restarts=1, iterations=1)(Target(lamp.model, lamp.judge), "dog", LIKE)
    with pytest.raises(UnknownName, match="preset of gradient"):
        Gradient.preset("inverse")
