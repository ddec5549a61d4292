"""The shipped model: it loads efficiently and generates what prompts ask for, as its judge sees it."""

import subprocess
import sys

import pytest
import torch

from efface.concept import table
from efface.judges.mini import judge
from efface.models.model import Model, Query

THINGS = [c for c in table("mini").values() if c.kind != "style"]
OBJECTS = [c.name for c in THINGS]
PLAIN = [c.fill("a picture of a {}") for c in THINGS]
STYLES = [c.name for c in table("mini").values() if c.kind == "style"]


@pytest.fixture(scope="module")
def mini():
    return Model.load("mini")


@pytest.mark.slow
def test_loading_makes_no_spare_network_and_imports_no_training_code():
    """Initial weights would be drawn at random. How long it takes is measured in benchmarks/mini_speed.py."""
    script = """
import sys, torch
from efface.models.model import Model
before = torch.get_rng_state()
Model.load("mini")
assert torch.equal(before, torch.get_rng_state())
needless = {"efface.mini", "efface.training", "efface.methods", "efface.attacks", "efface.evaluation"}
assert not needless & set(sys.modules), needless & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_load_is_a_model_of_its_own(mini):
    again = Model.load("mini")
    assert again.id == mini.id
    ours, theirs = mini.weights(), again.weights()
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)


def test_is_a_plain_pipeline(mini):
    assert type(mini.pipe).__name__ == "StableDiffusionPipeline"
    assert mini.family.schedule.output == "epsilon"
    assert mini.latent_shape == (4, 16, 16)
    assert mini.width == 128


def test_judge_knows_the_table():
    assert list(judge("mini").classes) == OBJECTS
    assert list(judge("mini").styles) == ["plain", *STYLES]


def test_generates_what_it_is_asked_for(mini):
    """Golden: one image an object, 10 steps; the floor is three standard errors below what was measured."""
    images = mini.generate([Query(text, 0, steps=8) for text in PLAIN])
    right = judge("mini").objects(images).argmax(1) == torch.arange(len(OBJECTS))
    assert right.float().mean() >= 0.85
    assert (judge("mini").style_probs(images).argmax(1) == 0).float().mean() >= 0.85


@pytest.mark.slow
def test_generates_styles(mini):
    asked = [(text, style) for text in PLAIN[::6] for style in STYLES]
    images = mini.generate([Query(f"{text} in the style of {style}", 0, steps=8) for text, style in asked])
    seen = judge("mini").style_probs(images).argmax(1)
    wanted = torch.tensor([STYLES.index(style) + 1 for _, style in asked])
    assert (seen == wanted).float().mean() >= 0.85


def test_clip_score_prefers_the_right_text(mini):
    images = mini.generate([Query(text, 1, steps=8) for text in PLAIN[:12]])
    right = judge("mini").clip_score(images, PLAIN[:12])
    wrong = judge("mini").clip_score(images, PLAIN[12:24])
    assert (right > wrong).float().mean() >= 0.8


def test_zero_shot_is_the_clip_score_of_every_pair(mini):
    images = mini.generate([Query(text, 0, steps=12) for text in PLAIN[:6]])
    texts = PLAIN[:6]
    likeness = judge("mini").zero_shot(images, texts)
    torch.testing.assert_close(likeness.diagonal(), judge("mini").clip_score(images, texts))
    assert likeness.argmax(1).tolist() == list(range(6))


def test_judge_refuses_other_models():
    from efface.errors import BadInput

    with pytest.raises(BadInput, match="only mini"):
        judge("somewhere/else")
