import itertools

import pytest
import torch

from efface.attack import Target
from efface.attacks.grid import Grid
from efface.attacks.search.lattice import points
from efface.errors import BadInput
from efface.judge import Judge, Profile
from efface.query import Query
from efface.training.checkpoints import checkpoints

LIKE = Query("0", steps=2, guidance=1.0)


def normalised(rows):
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


@pytest.mark.parametrize(("values", "width"), [(2, 3), (3, 4), (4, 3), (5, 3), (6, 3), (7, 3)])
def test_every_direction_of_the_grid_once(values, width):
    spaced = [round(value, 9) for value in torch.linspace(-1, 1, values, dtype=torch.float64).tolist()]
    whole = torch.tensor(list(itertools.product(spaced, repeat=width)), dtype=torch.float64)
    wanted = {tuple(row) for row in (normalised(whole) + 0.0).round(decimals=5).add(0.0).tolist()}
    found = points(values, width)
    directions = [tuple(row) for row in (normalised(found.double()) + 0.0).round(decimals=5).add(0.0).tolist()]
    assert len(directions) == len(set(directions))
    assert set(directions) == wanted


def test_how_many_prompts_there_are():
    assert [len(points(values, 8)) for values in (2, 3, 4, 5)] == [256, 6561, 65536 - 256, 390_625 - 6560]


@pytest.mark.slow
def test_it_finds_the_best_point_of_the_grid(lamp):
    grid = Grid(values=3, steps=(1, 2), images=(1, 2), survivors=(50, 5), more=1, replays=0)
    found = grid(Target(lamp.model, lamp.judge), "0", LIKE)
    everything = normalised(points(3, 8))
    best = everything[(everything @ lamp.w).argmax()]
    assert found.queries[0].context is not None
    torch.testing.assert_close(found.queries[0].context.tokens[0, 0], best)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert len(found.queries) == 5
    assert found.cost["images"] == 6561 + 50 * 2 == lamp.judge.seen
    assert found.cost["calls"] == 6561 + 50 * 2 * 2
    replayed = lamp.judge.objects(lamp.model.generate(found.queries))[:, 0]
    torch.testing.assert_close(replayed, torch.tensor(found.scores), atol=1e-4, rtol=1e-4)


def test_a_stopped_search_goes_on_where_it_was(lamp, tmp_path):
    grid = Grid(values=2, steps=(1, 2), images=(1, 2), survivors=(16, 4), chunk=64)
    whole = grid(Target(lamp.model, lamp.judge), "0", LIKE, seed=3)
    drawn, lamp.judge.seen = lamp.judge.seen, 0
    objects = lamp.judge.objects

    def tired(images):
        if lamp.judge.seen >= 128:
            raise KeyboardInterrupt
        return objects(images)

    lamp.judge.objects = tired
    with checkpoints(tmp_path), pytest.raises(KeyboardInterrupt):
        grid(Target(lamp.model, lamp.judge), "0", LIKE, seed=3)
    lamp.judge.objects, lamp.judge.seen = objects, 0
    with checkpoints(tmp_path):
        again = grid(Target(lamp.model, lamp.judge), "0", LIKE, seed=3)
    assert lamp.judge.seen == drawn - 128
    assert again.scores == whole.scores


class Coin(Judge):
    """Judge whose answer for "0" is yes or no, by a coin with the image's brightness: as rare as it is dark."""

    classes, profile = tuple("0123456789"), Profile(evaluator="coin")

    def __init__(self, scale: float = 1.0, seed: int = 0) -> None:
        self.scale, self.seen, self.rng = scale, 0, torch.Generator().manual_seed(seed)

    def objects(self, images: torch.Tensor) -> torch.Tensor:
        """Return (1, 0, …) or (0, 1, 0, …)."""
        self.seen += len(images)
        yes = torch.rand(len(images), generator=self.rng) < self.scale * images.mean((1, 2, 3))
        return torch.eye(10)[(~yes).long()]


def test_the_first_round_is_drawn_more_often_where_the_concept_is_rare(lamp):
    grid = Grid(values=2, steps=(1, 1), images=(1, 8), survivors=(16, 4), more=6, rare=0.1, replays=0)
    often = grid(Target(lamp.model, Coin()), "0", LIKE).about["rounds"][0]
    rare = grid(Target(lamp.model, coin := Coin(0.02)), "0", LIKE)
    first = rare.about["rounds"][0]
    assert (often["per_context"], first["per_context"]) == (1, 6)
    assert rare.cost["images"] == coin.seen == 256 * 6 + 16 * 8
    assert first["images"] == 256 * 6


@pytest.mark.slow
def test_it_says_how_often_a_finalist_would_be_dropped(lamp):
    """The chance that it says for the best point is how often many searches do drop that point."""
    grid = Grid(values=2, steps=(1, 1), images=(1, 64), survivors=(12, 8), more=1, replays=50)
    everything = normalised(points(2, 8))
    best = everything[(everything @ lamp.w).argmax()]
    dropped, said = [], []
    for seed in range(20):
        found = grid(Target(lamp.model, coin := Coin(0.5, seed)), "0", LIKE, seed)
        contexts = torch.cat([query.context.tokens[:, 0] for query in found.queries])
        dropped.append(not (contexts @ best > 0.999).any())
        missed = found.about["missed"]
        assert coin.seen == found.cost["images"] == 256 + 12 * 64 + 8 * 50
        assert len(missed["each"]) == 8
        assert missed["best_five"] == pytest.approx(torch.tensor(missed["each"][:5]).prod().item())
        said.append(missed["each"][0])
    assert 0.3 < sum(said) / 20 < 0.9
    assert abs(sum(dropped) / 20 - sum(said) / 20) < 0.3  # three standard deviations


def test_bad_settings(lamp, tiny):
    for fields, message in [
        ({"survivors": (4, 8, 2)}, "must not grow"),
        ({"images": (1,)}, "one number a round"),
        ({"images": (1, 0, 1)}, "images must be from 1 to 1000000, got 0"),
        ({"values": 1}, "values must be from 2 to 127, got 1"),
    ]:
        with pytest.raises(BadInput, match=message):
            Grid(**fields)
    with pytest.raises(BadInput, match="at least two queries"):
        Grid(values=2)(Target(tiny, lamp.judge), "0", LIKE)  # contexts of 16 tokens
    with pytest.raises(BadInput, match="at most 4,000,000 can be tried"):
        Grid(values=7)(Target(lamp.model, lamp.judge), "0", LIKE)
    with pytest.raises(BadInput, match="at least one query"):
        Grid(values=2)(Target(lamp.model, lamp.judge), "0", ())
