import pytest
import torch

from efface.attack import Target
from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid
from efface.attacks.search.lattice import points
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.judge import Judge, Profile
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.methods.uce import UCE
from efface.query import Query

LIKE = Query("0", steps=2, guidance=1.0)
ZERO = Concept("0", prompts=("0",))


class Coin(Judge):
    """Judge that says yes for "0" by a coin with the image's brightness."""

    classes, profile = tuple("0123456789"), Profile(evaluator="coin")

    def __init__(self) -> None:
        self.seen, self.rng = 0, torch.Generator().manual_seed(0)

    def objects(self, images):
        self.seen += len(images)
        light = images.mean((1, 2, 3))
        yes = (torch.rand(len(images), generator=self.rng) < light).float()
        yes = yes + light - light.detach()  # its gradient is the light's
        return torch.cat([yes[:, None], (1 - yes)[:, None], torch.zeros(len(images), 8)], 1)


class Blind(Judge):
    """Judge that sees a church everywhere, and has no gradient."""

    classes, profile = ("church",), Profile(evaluator="blind")

    def objects(self, images):
        return torch.ones(len(images), 1)


def nearness(found, w):
    return float(found.queries[0].context.tokens[0, 0] @ w)


@pytest.mark.parametrize("through", ["sampler", "eps"])
def test_it_ascends_to_the_concept(lamp, through):
    """The model's images are brightest, and its predictions best, at w."""
    fields = {"iterations": 60, "noises": 4, "steps": 1, "images": 4, "ranking": 2, "lr": 0.1, "coarse": 0, "final": 2}
    attack = Gradient(through=through, restarts=6, **fields)
    before = {name: w.detach().clone() for name, w in lamp.model.weights("").items()}
    found = attack(Target(lamp.model, lamp.judge, lamp.model), ZERO, LIKE)
    assert nearness(found, lamp.w) > 0.99
    norms = torch.stack([query.context.tokens[0, 0].norm() for query in found.queries])
    torch.testing.assert_close(norms, torch.ones(6))
    assert found.about["loss"][-1] < found.about["loss"][0]
    assert all(torch.equal(w, before[name]) for name, w in lamp.model.weights("").items())


@pytest.mark.slow
def test_it_beats_the_grid_at_a_fraction_of_its_cost(lamp):
    target = Target(lamp.model, lamp.judge, lamp.model)
    grid = Grid(values=3, steps=(1,), images=(1,), survivors=(1,))(target, "0", LIKE)
    lamp.judge.seen = 0
    attack = Gradient(restarts=2, coarse=0, iterations=30, noises=1, steps=1, ranking=1, final=0)
    ascended = attack(target, "0", LIKE)
    assert ascended.scores[0] >= grid.scores[0]
    assert lamp.judge.seen == ascended.cost["images"] < grid.cost["images"] / 50


def test_half_of_the_starts_are_the_best_points_of_a_coarse_grid(lamp):
    """With a rate that moves nothing, the starts are what is found."""
    attack = Gradient(restarts=6, coarse=2, iterations=1, noises=1, steps=1, ranking=1, final=0, lr=1e-9)
    found = attack(Target(lamp.model, lamp.judge), "0", LIKE)
    assert lamp.judge.seen == found.cost["images"] == 256 + 6 + 6
    assert (found.cost["calls"], found.cost["backward"]) == (256 + 6 + 6 * 2, 6)
    grid = torch.nn.functional.normalize(points(2, 8), dim=1)
    best = grid[(grid @ lamp.w).topk(3).indices]
    contexts = torch.cat([query.context.tokens[:, 0] for query in found.queries])
    torch.testing.assert_close((best @ contexts.T).amax(1), torch.ones(3))
    assert found.about["from_grid"] == 3


def test_the_best_are_ranked_again_with_more_images(lamp):
    attack = Gradient(restarts=5, coarse=0, iterations=1, noises=1, steps=1, ranking=1, finalists=2, final=50, lr=1e-9)
    target = Target(lamp.model, coin := Coin())
    found = attack(target, "0", LIKE)
    assert coin.seen == found.cost["images"] == 5 + 5 + 2 * 50
    light = [float(lamp.model.generate([query]).mean()) for query in found.queries[:2]]
    for score, share in zip(found.scores, light, strict=False):
        assert abs(score - share) < 0.2  # of 50 images; the first ranking says 0 or 1
    assert found.scores[0] >= found.scores[1]
    assert set(found.scores[2:]) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["negative", "sld", "map"])
def test_through_eps_a_guard_is_part_of_the_loss(tiny, kind):
    """A guard that is not in the loss would leave it, and what is found, bit for bit as without one."""
    church = Concept("church")
    guard = {"negative": NegativePrompt(), "sld": SLD(warmup=0), "map": UCE()}[kind](tiny, [church])
    guard = guard.as_guard() if kind == "map" else guard
    like = Query("a church", steps=1, guidance=3.0)
    attack = Gradient(through="eps", restarts=2, iterations=2, noises=1, images=2, ranking=1)
    plain = attack(Target(tiny, Blind(), tiny), church, like)
    with guard.applied(tiny) as edited:
        found = attack(Target(edited, Blind(), tiny), church, like)
    assert found.about["loss"] != pytest.approx(plain.about["loss"], rel=1e-3)
    assert found.queries[0].context.tokens.shape == plain.queries[0].context.tokens.shape


def test_through_eps_the_pictures_are_of_the_seed(tiny):
    attack = Gradient(through="eps", restarts=1, iterations=1, noises=1, images=2, ranking=1, lr=1e-9)
    like = Query("a church", steps=1, guidance=1.0)
    target = Target(tiny, Blind(), tiny)
    losses = [attack(target, "church", like, seed).about["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_through_eps_on_sdxl(tiny_xl):
    """SDXL also reads a pooled vector, which stays that of no prompt."""
    attack = Gradient(through="eps", restarts=1, iterations=1, noises=1, images=1, ranking=1)
    found = attack(Target(tiny_xl, Blind(), tiny_xl), "church", Query("a church", steps=1, guidance=1.0))
    assert tiny_xl.generate(found.queries).isfinite().all()


@pytest.mark.slow
def test_seed(lamp):
    attack, target = (
        Gradient(restarts=2, coarse=2, iterations=2, noises=1, ranking=1, final=2),
        Target(lamp.model, lamp.judge),
    )
    one, two, other = (attack(target, "0", LIKE, seed) for seed in (0, 0, 1))
    assert one.queries == two.queries
    assert one.queries != other.queries


def test_through_eps_it_attacks_stable_diffusion(tiny):
    """It works with contexts of many tokens and with a judge without gradient."""
    attack = Gradient(through="eps", restarts=2, iterations=2, noises=1, images=2, ranking=1, radius=0.0)
    found = attack(Target(tiny, Blind(), tiny), "church", Query("", steps=1, guidance=1.0))
    assert found.queries[0].context.tokens.shape == (1, 16, 32)
    assert tiny.generate(found.queries[:1]).shape == (1, 3, 16, 16)


def test_bad_settings(lamp):
    for fields, message in [
        ({"restarts": 0}, "restarts must be from 1 to 4096, got 0"),
        ({"lr": 0.0}, "lr must be above 0 and at most 100, got 0"),
        ({"radius": -1.0}, "radius must be from 0 to"),
        ({"coarse": 1}, "coarse must be 0, or at least 2"),
    ]:
        with pytest.raises(BadInput, match=message):
            Gradient(**fields)
    with pytest.raises(BadInput, match="needs the original model"):
        Gradient(through="eps")(Target(lamp.model, lamp.judge), "0", LIKE)
    with pytest.raises(UnknownName, match="class of the judge 'dog'"):
        Gradient(restarts=1, iterations=1)(Target(lamp.model, lamp.judge), "dog", LIKE)
    with pytest.raises(UnknownName, match="preset of gradient"):
        Gradient.preset("inverse")
