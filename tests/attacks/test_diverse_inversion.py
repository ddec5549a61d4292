"""Diverse Inversion: its bounds hold after every step, its projection is the nearest, and its batch is eq. 4."""

from dataclasses import replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.diverse_inversion import DiverseInversion
from efface.attacks.search import inverting
from efface.attacks.search.bands import Bands, least_pairs
from efface.attacks.search.inverting import Words, invert
from efface.concept import Concept
from efface.edits.guard import Guard
from efface.errors import BadInput
from efface.methods.negative import NegativePrompt
from efface.models.token_vectors import ids_of, table
from efface.query import Query

CHURCH = Concept("church")
LIKE = Query("a photo of a church", steps=2, guidance=1.0)
QUICK = DiverseInversion(bands=2, each=3, steps=3, batch=1, images=2, lr=0.5)


def moved(model):
    weights = {name: w.detach() * 1.1 for name, w in model.weights().items()}
    return model.edited(weights, id="moved")


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def bands(n, dim, low, high, pair_low=-1.0, pair_high=1.0, seed=0):
    reference = torch.randn(1, 2, dim // 2, generator=torch.Generator().manual_seed(seed))
    ends = (torch.full((n,), end) for end in (low, high))
    return Bands(reference, *ends, pair_low, pair_high, ~torch.eye(n, dtype=torch.bool))


def test_every_bound_holds_after_every_step(tiny, monkeypatch):
    """At a learning rate that leaves the bounds at once, as the vectors are encoded, and as they are returned."""
    seen, real = [], inverting.encode
    monkeypatch.setattr(inverting, "encode", lambda m, f, v: (seen.append(v.detach().clone()), real(m, f, v))[1])
    attack = replace(QUICK, steps=5, pairs="all", pair_high=0.45)
    found = attack(Target(tiny, original=tiny), CHURCH, LIKE)
    name = table(tiny)[ids_of(tiny, "church")[0]]
    ends = [(0.0, 0.375)] * 3 + [(0.375, 0.75)] * 3
    order = found.tensors["order"]
    final = torch.empty_like(found.tensors["vectors"])
    final[order] = found.tensors["vectors"]
    for vectors in [*seen, final]:
        for vector, (low, high) in zip(vectors, ends, strict=True):
            assert low - 1e-3 <= cosine(vector, name) <= high + 1e-3
        for i in range(6):
            for j in range(i):
                assert cosine(vectors[i], vectors[j]) <= 0.45 + 1e-3
    assert len(seen) == 5
    assert found.about["off"] <= 1e-3
    free = replace(attack, constraint="none")(Target(tiny, original=tiny), CHURCH, LIKE)
    assert free.about["off"] > 0.1


def test_pairs_of_different_bands_may_be_alike(tiny):
    own = {"low": 0.7, "high": 0.9, "pair_high": 0.65}
    within = replace(QUICK, **own, pairs="band").bounds(tiny, CHURCH)
    every = replace(QUICK, **own, pairs="all").bounds(tiny, CHURCH)
    assert int(within.together.sum()) == 2 * 3 * 2
    assert int(every.together.sum()) == 6 * 5
    assert not bool(within.together[0, 3])
    assert bool(every.together[0, 3])


def test_what_is_reported_is_what_was_learned(tiny):
    found = QUICK(Target(moved(tiny), original=tiny), CHURCH, [LIKE, replace(LIKE, prompt="art", seed=2)])
    vectors, about = found.tensors["vectors"], found.about
    name = table(tiny)[ids_of(tiny, "church")[0]]
    assert len(found.queries) == 12
    assert [round(cosine(v, name), 3) for v in vectors] == pytest.approx(about["to_name"], abs=1e-3)
    assert sorted(about["band"]) == [0, 0, 0, 1, 1, 1]
    for band, to in zip(about["band"], about["to_name"], strict=True):
        assert about["bands"][band][0] - 1e-3 <= to <= about["bands"][band][1] + 1e-3
    pairs = {(i, j): cosine(vectors[i], vectors[j]) for i in range(6) for j in range(i)}
    own = [value for (i, j), value in pairs.items() if about["band"][i] == about["band"][j]]
    for name, values in (("all", list(pairs.values())), ("band", own)):
        told = {"least": min(values), "mean": sum(values) / len(values), "largest": max(values)}
        assert about["pairs"][name] == pytest.approx(told, abs=1e-3)
    assert float(found.tensors["cosines"][2, 1]) == pytest.approx(pairs[2, 1], abs=1e-3)
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_one_vector_is_projected_to_the_nearest_of_its_norm():
    """No vector of the same norm within the band is nearer than the projection."""
    own = bands(1, 6, 0.3, 0.5)
    rng = torch.Generator().manual_seed(3)
    for _ in range(5):
        vector = torch.randn(1, 2, 3, generator=rng)
        projected = own.project(vector)
        others = torch.randn(20000, 2, 3, generator=rng)
        others *= (vector.norm() / others.flatten(1).norm(dim=1))[:, None, None]
        to = torch.nn.functional.cosine_similarity(others.flatten(1), own.reference.flatten(1))
        inside = others[(to >= 0.3) & (to <= 0.5)]
        nearest = (inside - vector).flatten(1).norm(dim=1).min()
        assert float((projected - vector).norm()) <= float(nearest) + 1e-5
        assert float(projected.norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
        assert own.worst(projected) < 1e-6


@pytest.mark.parametrize(
    ("n", "dim", "low", "high", "pair_low", "pair_high"),
    [
        (8, 32, 0.6, 0.75, -1.0, 0.5),
        (20, 64, 0.6, 0.75, -1.0, 0.34),  # the bound is 0.326, reached at the band's lower end only
        (20, 64, 0.0, 0.2, 0.3, 0.31),  # not unlike, not alike
        (40, 16, 0.0, 0.2, -1.0, 0.5),  # more than the dimensions
        (6, 32, -0.8, -0.6, -1.0, 0.4),
    ],
)
@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_sets_that_exist_are_found(n, dim, low, high, pair_low, pair_high, spread):
    own = bands(n, dim, low, high, pair_low, pair_high)
    rng = torch.Generator().manual_seed(1)
    vectors = torch.randn(1, 2, dim // 2, generator=rng) + spread * torch.randn(n, 2, dim // 2, generator=rng)
    found = own.project(vectors)
    assert own.worst(found) < 1e-3
    torch.testing.assert_close(own.project(found), found, atol=1e-5, rtol=1e-5)  # what satisfies the bounds stays
    torch.testing.assert_close(found.flatten(1).norm(dim=1), vectors.flatten(1).norm(dim=1))


def test_least_pairs():
    """No set is below the bound, and a simplex around the reference reaches it."""
    n, s = 5, 0.7
    simplex = torch.eye(n) - 1 / n
    simplex = simplex / simplex.norm(dim=1, keepdim=True)
    points = torch.cat([torch.full((n, 1), s), (1 - s**2) ** 0.5 * simplex], 1)
    pairs = (points @ points.T)[~torch.eye(n, dtype=torch.bool)]
    torch.testing.assert_close(pairs, torch.full_like(pairs, least_pairs(n, s)))
    assert least_pairs(1, 0.9) == -1


def test_bounds_that_cannot_be_met_are_refused_before_work(tiny, monkeypatch):
    least = least_pairs(20, 0.8)
    DiverseInversion(low=0.8, high=0.9, bands=1, each=20, pair_high=least + 1e-6)
    with pytest.raises(BadInput, match=r"20 embeddings at a cosine of 0.8 or more .* pair_high 0.62 cannot be reached"):
        DiverseInversion(low=0.8, high=0.9, bands=1, each=20, pair_high=0.62)
    with pytest.raises(BadInput, match=r"cosine of 0.8 or more"):
        DiverseInversion(low=-0.9, high=-0.8, bands=1, each=20, pair_high=0.62)
    with pytest.raises(BadInput, match=r"10 embeddings at a cosine of 0.78 or more"):
        DiverseInversion(low=0.7, high=0.9, each=2, pairs="all", pair_high=0.5)
    DiverseInversion(low=0.7, high=0.9, each=2, pairs="band", pair_high=0.5)
    assert DiverseInversion(low=0.8, high=0.9, pair_high=0.1, constraint="none").edges[0][0] == 0.8
    for fields in ({"low": 0.5, "high": 0.5}, {"pair_low": 0.5, "pair_high": 0.5}):
        with pytest.raises(BadInput, match="needs its lower end below its upper one"):
            DiverseInversion(**fields)
    with pytest.raises(BadInput, match=r"low must be from -1 to 1"):
        DiverseInversion(low=-2.0)

    def never(*args):
        raise AssertionError("images were generated")

    monkeypatch.setattr(inverting, "pictures", never)
    crowded = replace(QUICK, bands=1, each=70, high=0.1, pair_high=0.0)  # 64 at most in 32 dimensions
    with pytest.raises(BadInput, match="no 70 embeddings were found"):
        crowded(Target(tiny, original=tiny), CHURCH, LIKE)


def test_penalty(tiny):
    """It is the squared violations, each pair once; and its descent reduces them."""
    own = bands(3, 8, 0.2, 0.4, -0.1, 0.3)
    vectors = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2)) + own.reference
    expected = 0.0
    for i in range(3):
        to = cosine(vectors[i], own.reference)
        expected += max(0, to - 0.4) ** 2 + max(0, 0.2 - to) ** 2
        for j in range(i):
            pair = cosine(vectors[i], vectors[j])
            expected += max(0, pair - 0.3) ** 2 + max(0, -0.1 - pair) ** 2
    assert expected > 0.01
    assert float(own.penalty(vectors)) == pytest.approx(expected, rel=1e-4)

    target = Target(tiny, original=tiny)
    attack = replace(QUICK, constraint="penalty", penalty=1e6, steps=4, lr=0.05)
    held = attack(target, CHURCH, LIKE)
    free = replace(attack, penalty=1e-9)(target, CHURCH, LIKE)
    assert held.about["off"] < free.about["off"]


def test_penalty_is_counted_once_a_step(tiny):
    """Whatever the number of parts that a step is made in, the loss is Σ errors + the penalty."""
    ends = []
    for at_once in (1, 64):
        attack = replace(QUICK, at_once=at_once, steps=1, lr=1e-9)
        words = Words(torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0)))
        target = Target(tiny, original=tiny)
        found = invert(attack, target, CHURCH, [LIKE], words, 0, None, lambda v: 3000 + 0 * v.sum())
        ends.append(found.history[0] - float(found.losses.mean()))
    assert ends == pytest.approx([1000, 1000], rel=1e-4)


def test_it_learns_on_the_original_unless_told(tiny):
    """The paper finds its embeddings before the edit is chosen; the queries are for the edited model all the same."""
    edited, quick = moved(tiny), replace(QUICK, each=1, steps=2)
    both = [quick(Target(model, original=tiny), CHURCH, LIKE) for model in (tiny, edited)]
    assert torch.equal(both[0].tensors["vectors"], both[1].tensors["vectors"])
    through = replace(quick, through="edited")(Target(edited, original=tiny), CHURCH, LIKE)
    assert not torch.allclose(through.tensors["vectors"], both[0].tensors["vectors"])
    guarded = tiny.guarded(Guard(NegativePrompt(), (CHURCH,)))
    other = replace(quick, through="edited")(Target(guarded, original=tiny), CHURCH, LIKE)
    assert other.cost["calls"] > through.cost["calls"]


def test_what_the_original_teaches_serves_against_every_edit(tiny, monkeypatch):
    """Pictures and embeddings are made once; through the edited model they are learned for each."""
    first = QUICK(Target(tiny, original=tiny), CHURCH, LIKE)
    monkeypatch.setattr(inverting, "encode", lambda *_: pytest.fail("learned again"))
    monkeypatch.setattr(type(tiny), "sample", lambda *_: pytest.fail("pictures made again"))
    again = QUICK(Target(moved(tiny), original=tiny), CHURCH, LIKE)
    assert (again.scores, again.about, again.cost) == (first.scores, first.about, first.cost)
    assert torch.equal(again.tensors["vectors"], first.tensors["vectors"])
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        replace(QUICK, through="edited")(Target(moved(tiny), original=tiny), CHURCH, LIKE)
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        replace(QUICK, lr=0.4)(Target(moved(tiny), original=tiny), CHURCH, LIKE)
    with pytest.raises(pytest.fail.Exception, match="pictures made again"):
        QUICK(Target(moved(tiny), original=tiny), CHURCH, LIKE, seed=1)


def test_starts(tiny):
    """They are in the bands, of the name's norm; restarts start anywhere, spread as the table's vectors."""
    attack = replace(QUICK, each=40, pair_high=0.9)
    own = attack.bounds(tiny, CHURCH)
    starts = attack.starts(tiny, own, 0)
    assert own.worst(starts) < 1e-3
    norm = float(table(tiny)[ids_of(tiny, "church")[0]].norm())
    torch.testing.assert_close(starts.flatten(1).norm(dim=1), torch.full((80,), norm))
    to = own.cosines(starts)[0]
    assert float(to[:40].std()) > 0.05  # spread over the band
    restarts = replace(attack, constraint="none").starts(tiny, own, 0)
    assert abs(float(own.cosines(restarts)[0].mean())) < 0.1
    torch.testing.assert_close(restarts.std(), table(tiny).std(), rtol=0.05, atol=0.0)


def test_the_name_of_several_tokens(tiny):
    """One vector is compared with their mean, several with the tokens in turn."""
    name, known = Concept("red church"), table(tiny)
    own = known[ids_of(tiny, name.name)]
    torch.testing.assert_close(QUICK.bounds(tiny, name).reference[0, 0], own.mean(0))
    three = replace(QUICK, vectors=3).bounds(tiny, name).reference[0]
    torch.testing.assert_close(three, own[[0, 1, 0]])


def test_sdxl(tiny_xl):
    found = replace(QUICK, vectors=2, through="edited")(Target(tiny_xl, original=tiny_xl), CHURCH, LIKE)
    assert found.tensors["vectors"].shape == (6, 2, 96)
    assert found.about["off"] <= 1e-3
    assert found.replay(tiny_xl).shape == (6, 3, 16, 16)
