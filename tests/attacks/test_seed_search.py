"""Seed search."""

from dataclasses import replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.seed_search import SeedSearch
from efface.errors import BadInput
from efface.training.checkpoints import checkpoints


def test_every_prompt_gets_its_own_seed_first_and_the_best_come_first(pix):
    found = SeedSearch(tries=5, batch=4)(Target(pix.edited, pix.judge), "church", pix.queries, seed=3)
    assert len(found.queries) == len(set(found.queries)) == 10
    assert set(pix.queries) <= set(found.queries)
    seen = pix.judge.objects(found.replay(pix.edited))[:, 0]
    torch.testing.assert_close(torch.tensor(found.scores), seen, atol=1e-4, rtol=0)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.cost == {"images": 10, "calls": 10 * 12, "backward": 0, "texts": 1}
    succeeded = float((seen > 0.5).float().mean())
    assert found.about == {"tried": 10, "succeeded": pytest.approx(succeeded)}


def test_on_the_original_it_succeeds_at_once_and_stops(pix):
    found = SeedSearch(tries=20, batch=4, stop=True)(Target(pix.original, pix.judge), "church", pix.queries)
    assert found.about["tried"] == 4
    assert set(found.queries[:2]) == set(pix.queries)
    assert found.scores[0] > 0.999
    on = SeedSearch(tries=3, batch=4)(Target(pix.original, pix.judge), "church", pix.queries)
    assert on.about["tried"] == 6


@pytest.mark.slow
def test_seed_and_resume(pix, tmp_path):
    target, attack = Target(pix.edited, pix.judge), SeedSearch(tries=3, batch=2)
    one, other = (attack(target, "church", pix.queries, seed) for seed in (0, 1))
    assert set(one.queries) != set(other.queries)
    with checkpoints(tmp_path / "run"):
        first = attack(target, "church", pix.queries)
        before = pix.judge.seen
        again = attack(target, "church", pix.queries)
        assert pix.judge.seen == before, "a resumed search asks nothing again"
        assert one.scores == first.scores == again.scores
        with pytest.raises(BadInput, match="belongs to another run"):
            attack(target, "church", replace(pix.queries[0], seed=7))


@pytest.mark.parametrize("kind", ["negative", "sld"])
def test_through_guards(pix, kind):
    found = SeedSearch(tries=2)(Target(pix.models[kind], pix.judge), "church", pix.queries)
    seen = pix.judge.objects(found.replay(pix.models[kind]))[:, 0]
    torch.testing.assert_close(torch.tensor(found.scores), seen, atol=1e-4, rtol=0)


def test_on_sdxl(pix_xl):
    found = SeedSearch(tries=2)(Target(pix_xl.original, pix_xl.judge), "church", pix_xl.queries)
    assert found.scores[1] > 0.999
