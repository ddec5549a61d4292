"""Diffusion completion."""

from dataclasses import replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.completion import Completion
from efface.errors import BadInput
from efface.finding import Finding


def distance(images, others):
    return (images - others).square().mean((1, 2, 3))


@pytest.mark.slow
def test_of_the_same_model_it_is_the_models_own_image(pix):
    found = Completion(first=(0, 1, 3, 5))(Target(pix.original, pix.judge, pix.original), "church", pix.queries)
    assert len(found.queries) == 8
    images = dict(zip(found.queries, found.replay(pix.original), strict=True))
    for query, image in images.items():
        torch.testing.assert_close(image, pix.judge.images[query.seed], atol=1e-5, rtol=0)
    assert min(found.scores) > 0.999


def test_the_first_steps_are_the_originals_and_the_rest_the_edited_models(pix):
    """Composed by hand of the two models' own sampling."""
    found = Completion(first=(2,))(Target(pix.edited, pix.judge, pix.original), "church", pix.queries)
    begun = pix.original.sample(pix.queries, stop=2)
    wanted = pix.edited.decode(pix.edited.sample(pix.queries, start=2, latents=begun))
    made = found.replay(pix.edited)
    for query, image in zip(found.queries, made, strict=True):
        assert query.start == 2
        torch.testing.assert_close(image, wanted[query.seed], atol=1e-5, rtol=0)


def test_the_more_the_original_does_the_nearer_is_its_image(pix):
    """All but the last step come from the original at share 1."""
    attack = Completion(first=(0,), shares=(0.5, 1.0))
    found = attack(Target(pix.edited, pix.judge, pix.original), "church", pix.queries[0])
    assert found.about["first"] == [5, 3, 0]
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert found.scores[0] > found.scores[-1] + 0.05
    plain = found.queries[-1]
    assert plain.latents is None
    assert plain == pix.queries[0]
    assert found.cost == {"images": 3, "calls": 3 * 12, "backward": 0, "texts": 1}


@pytest.mark.parametrize("kind", ["weights", "negative", "sld"])
def test_it_replays_from_a_file(pix, kind, tmp_path):
    model = pix.models[kind]
    found = Completion(first=(1,))(Target(model, pix.judge, pix.original), "church", pix.queries)
    found.save(tmp_path / "finding.safetensors")
    again = Finding.load(tmp_path / "finding.safetensors")
    assert again.queries == found.queries
    seen = pix.judge.objects(again.replay(model))[:, 0]
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_on_sdxl(pix_xl):
    attack = Completion(first=(3,), solver="")
    queries = [replace(query, solver="") for query in pix_xl.queries]  # Euler, which scales its input
    judge = type(pix_xl.judge)(pix_xl.original.generate(queries))
    found = attack(Target(pix_xl.original, judge, pix_xl.original), "church", queries)
    assert min(found.scores) > 0.999


def test_bad_input(pix):
    target = Target(pix.edited, pix.judge, pix.original)
    with pytest.raises(BadInput, match="first is 6, but an image has 6 steps"):
        Completion(first=(6,))(target, "church", pix.queries)
    with pytest.raises(BadInput, match="needs first or shares"):
        Completion(first=())(target, "church", pix.queries)
    with pytest.raises(BadInput, match="the solver of this model, PNDMScheduler, cannot begin in the middle"):
        Completion(solver="")(target, "church", replace(pix.queries[0], solver=""))
    with pytest.raises(BadInput, match="the solver lms cannot begin"):
        Completion(first=(1,), solver="lms")(target, "church", pix.queries)
    with pytest.raises(BadInput, match="original model"):
        Completion()(Target(pix.edited, pix.judge), "church", pix.queries)
    with pytest.raises(BadInput, match="judge"):
        Completion()(Target(pix.edited, None, pix.original), "church", pix.queries)
