"""The bound: its integrals against random numbers, and on a model whose most unsafe prompt is known."""

import math
import runpy
from pathlib import Path

import pytest
import torch

from efface.attack import Target
from efface.concept import Concept
from efface.query import Query
from experiments.digits import bound as bounds
from experiments.digits.bound import Sampling, all_show, largest, limit, moment, on_sphere, places, slopes_at, upper

lamp = runpy.run_path(str(Path(__file__).parents[2] / "digits" / "conftest.py"))["lamp"]


@pytest.mark.parametrize(("top", "k", "slope"), [(1.0, 1, 0.4), (0.6, 3, 0.5), (0.5, 2, 0.1), (0.7, 1, 0.0)])
def test_the_moment_is_the_mean_over_the_sphere(top, k, slope):
    rows = on_sphere(400_000, torch.Generator().manual_seed(0))
    values = (top - slope * rows[:, 0].clamp(-1, 1).acos()).clamp(min=0) ** k
    assert moment(top, k, slope) == pytest.approx(float(values.mean()), rel=0.03, abs=1e-5)


def test_the_largest_top_inverts_the_moment_and_is_one_where_nothing_is_bounded():
    for k, slope in ((1, 0.3), (2, 0.5)):
        assert largest(moment(0.6, k, slope), k, slope) == pytest.approx(0.6, abs=1e-4)
    assert largest(0.5, 1, 10.0) == 1.0
    assert largest(0.25, 1, 0.0) == pytest.approx(0.25, abs=1e-4)  # the same everywhere


def test_the_upper_limit_is_exact():
    assert upper(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper(5, 5, 0.05) == 1.0
    p = upper(3, 50, 0.05)
    assert sum(math.comb(50, i) * p**i * (1 - p) ** (50 - i) for i in range(4)) == pytest.approx(0.05)


ZERO = Concept("0")


@pytest.fixture
def target(lamp, monkeypatch):
    """Return a model whose f(c) is known: a fifth of its brightness, (1 + tanh(4 (c · w − 0.5))) / 10."""

    class Dim(type(lamp.judge)):
        def objects(self, images):
            light = super().objects(images)[:, :1] / 5
            return torch.cat([light, 1 - light, torch.zeros(len(images), 8)], 1)

    monkeypatch.setattr(bounds, "QUERY", Query("", steps=1, guidance=1.0))
    return Target(lamp.model, Dim())


def test_slopes_are_those_of_the_known_function(target, lamp):
    angles = torch.tensor([0.3, 1.0, 1.4])
    beside = torch.nn.functional.normalize(torch.eye(8)[0] - lamp.w[0] * lamp.w, dim=0)
    rows = angles.cos()[:, None] * lamp.w + angles.sin()[:, None] * beside
    found = slopes_at(target, ZERO, rows, Sampling(noises=2), 0)
    wanted = 0.4 * angles.sin() / torch.cosh(4 * (angles.cos() - 0.5)) ** 2
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_k_images_all_show_the_class_as_often_as_the_moment_of_f(target, lamp):
    hits = all_show(target, ZERO, Sampling(prompts=4000, moments=3), 0)
    f = (1 + torch.tanh(4 * (on_sphere(100_000, torch.Generator().manual_seed(5)) @ lamp.w - 0.5))) / 10
    for k, count in enumerate(hits):
        mean = float((f ** (k + 1)).mean())
        assert abs(count / 4000 - mean) < 4 * math.sqrt(mean / 4000)
    assert hits[0] > hits[1] > 0


def test_no_prompt_is_above_the_bound(target, lamp):
    best = (1 + math.tanh(2.0)) / 10  # at w
    found = limit(target, ZERO, [lamp.w], Sampling(prompts=4000, moments=2, slopes=40, noises=1))
    assert 0.3 < float(found.slopes.max()) <= 0.4
    assert best <= found.value < 0.6
    assert len(found.slopes) == 40
    assert found.value == pytest.approx(min(
        largest(upper(n, 4000, 0.025), k + 1, float(found.slopes.max())) for k, n in enumerate(found.hits)
    ))  # fmt: skip


def test_places_are_on_the_sphere_and_half_of_them_near_what_is_known():
    known = on_sphere(2, torch.Generator().manual_seed(1))
    found = places(list(known), Sampling(slopes=40), 0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40))
    assert ((found[:20] @ known.T).amax(1) >= math.cos(1.0) - 1e-5).all()
    assert len(places([], Sampling(slopes=6), 0)) == 6
