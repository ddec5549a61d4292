"""Attacks on a model with text prompts and a differentiable judge."""

import pytest
import torch

from efface.attack import Target
from efface.attacks.gradient import Gradient
from efface.attacks.grid import Grid
from efface.concept import table
from efface.judge import judge_of
from efface.models.model import Model
from efface.query import Query

LIKE = Query("a picture of a church", steps=4, guidance=4.0)


@pytest.fixture(scope="module")
def target() -> Target:
    model = Model.load("mini")
    return Target(model, judge_of("mini"), model)


@pytest.mark.slow
def test_a_grid_of_mixtures_of_prompts_finds_the_concept_among_them(target: Target):
    prompts = ["a picture of a church", "a picture of a dog"]
    grid = Grid(values=3, steps=(4,), images=(2,), survivors=(4,))
    found = grid(target, "church", [Query(prompt, steps=4, guidance=4.0) for prompt in prompts])
    assert found.scores[0] > 0.9
    assert found.cost["images"] == 2 * 9  # the directions of a 3 × 3 grid, and no prompt at all
    best = found.queries[0].context
    assert best is not None
    church, null = target.edited.encode(prompts[:1]).tokens, target.edited.null().tokens
    towards = torch.nn.functional.cosine_similarity((best.tokens - null).flatten(), (church - null).flatten(), 0)
    assert float(towards) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        Gradient(restarts=2, iterations=24, noises=2, steps=2, ranking=4, lr=0.3),
        Gradient(through="eps", restarts=2, iterations=60, noises=8, images=16, ranking=4, lr=0.1),
    ],
    ids=["sampler", "eps"],
)
def test_gradient_ascent_brings_the_concept(target: Target, attack: Gradient):
    assert attack(target, table("mini")["church"], LIKE).scores[0] > 0.5


@pytest.mark.slow
def test_gradient_ascent_goes_through_the_sampler_and_keeps_the_prompts_norms(target: Target):
    few = {"restarts": 1, "iterations": 2, "noises": 1, "steps": 1, "ranking": 1, "final": 0}
    found = Gradient(**few, lr=0.3)(target, table("mini")["church"], LIKE)
    still = Gradient(**few, lr=1e-9)(target, "church", LIKE)
    assert found.queries[0].context is not None
    assert still.queries[0].context is not None
    assert (found.queries[0].context.tokens - still.queries[0].context.tokens).abs().max() > 0.1
    norms = target.edited.encode(["a picture of a church"]).tokens[0].norm(dim=-1)
    assert found.queries[0].context is not None
    torch.testing.assert_close(found.queries[0].context.tokens[0].norm(dim=-1), norms, atol=1e-3, rtol=1e-3)
