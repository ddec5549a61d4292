"""NudeNet's counts and curves, the likelihood of latents, and the similarity of prompts."""

import math

import pytest
import torch

from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput, UnknownName
from efface.evaluation.nudity import nudity
from efface.metric import Samples
from efface.metrics.exposed_parts import ExposedParts
from efface.metrics.latent_likelihood import LatentLikelihood
from efface.metrics.prompt_similarity import PromptSimilarity
from efface.models.inversion import ddim_steps
from efface.query import Query


@pytest.fixture
def skin(detector) -> torch.Tensor:
    """Images of which the first shows nothing, the second a belly, the third buttocks (twice), the last all."""
    x = torch.full((4, 3, 8, 8), 0.1)
    x[1, 2, 0, 0] = x[3, 2, 0, 0] = 0.55
    x[2, 0, 0, 0] = x[3, 0, 0, 0] = 1.0
    return x


def test_parts_are_counted_by_set_and_threshold(skin: torch.Tensor) -> None:
    samples = Samples(skin)
    assert ExposedParts(threshold=0.5)(samples).tolist() == [0, 1, 2, 3]
    assert ExposedParts(threshold=0.6)(samples).tolist() == [0, 0, 1, 1]
    assert ExposedParts("exposed", 0.45)(samples).tolist() == [0, 0, 2, 2]
    assert ExposedParts(threshold=0.5, count="images")(samples).tolist() == [0, 1, 1, 1]
    assert ExposedParts.preset("kpop").label == "exposed_images wide 0.5"
    assert ExposedParts().instrument()["sha256"].keys() == {"320n.onnx"}
    with pytest.raises(BadInput, match=r"threshold must be from 0\.25 to 1, got 0\.2"):
        ExposedParts(threshold=0.2)


def test_a_curve_has_parts_and_the_share_of_images(skin: torch.Tensor) -> None:
    found = nudity([skin[:2], skin[2:]], "wide", (0.3, 0.5, 0.7))
    assert [at.total for at in found.curve] == [6, 6, 2]
    assert [at.images.hits for at in found.curve] == [3, 3, 2]
    assert found.curve[2].parts["BUTTOCKS"] == 2
    assert found.curve[2].parts["FEMALE_BREAST"] == 0  # covered
    assert found.curve[0].images.n == 4
    assert [at.total for at in nudity([skin], "exposed", (0.5,)).curve] == [4]
    for wrong, says in (((0.2,), "package's own cut"), ((1.1,), "to 1, got 1.1"), ((), "needs a threshold")):
        with pytest.raises(BadInput, match=says):
            nudity([skin], "wide", wrong)
    with pytest.raises(UnknownName, match="did you mean 'wide'"):
        nudity([skin], "wyde")


def test_the_noise_of_a_models_own_image_is_likely(tiny) -> None:
    """Without any edit, of one step whose noise prediction is known: the number is that of the inverted latents."""
    image = tiny.generate([Query("a church", 0, steps=2)])
    found = LatentLikelihood(steps=2, rounds=0)(Samples(image, texts=["a church"], model=tiny, edit=Edit()))
    clean = tiny.encode_images(image)
    cond = tiny.encode(["a church"])
    x = clean
    for low, high in ddim_steps(tiny, 2):
        a, s = tiny.levels(torch.tensor(high))
        at = high if low is None else low
        before = (1.0, 0.0) if low is None else tiny.levels(torch.tensor(low))
        eps = tiny.eps(x, torch.tensor(at), cond)
        x = a * (x - before[1] * eps) / before[0] + s * eps
    known = -0.5 * (float(x.double().square().mean()) + math.log(2 * math.pi))
    assert float(found) == pytest.approx(known, abs=1e-4)


def test_a_prompt_is_like_itself_and_a_learned_one_like_what_it_was_made_from(tiny) -> None:
    church, dog = (tiny.encode([f"a picture of a {name}"]) for name in ("church", "dog"))
    halfway = Context((church.tokens + dog.tokens) / 2, None)
    asked = [Query("a picture of a church"), Query("", context=halfway), Query("", context=halfway), Query("moon")]
    texts = ["a picture of a church", "a picture of a church", "a picture of a dog", "a picture of a church"]
    found = PromptSimilarity()(Samples(queries=asked, texts=texts, model=tiny)).tolist()
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1] > found[3]
    null = tiny.null().tokens[0, 1:].mean(0)
    c, d = (one.tokens[0, 1:].mean(0) - null for one in (church, dog))
    assert found[2] == pytest.approx(float(torch.cosine_similarity((c + d) / 2, d, 0)), abs=1e-5)
    with pytest.raises(BadInput, match="one for each of the 2 queries"):
        Samples(queries=asked[:2], texts=texts[:1], model=tiny)
