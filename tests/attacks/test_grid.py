import itertools

import pytest
import torch

from efface.attack import Target
from efface.attacks.grid import Grid, points
from efface.errors import BadInput
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


def test_it_finds_the_best_point_of_the_grid(lamp):
    grid = Grid(values=3, steps=(1, 2), images=(1, 2), survivors=(50, 5))
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
