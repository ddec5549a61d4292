"""The digits model keeps the promises of `Model`, and the methods of Stable Diffusion edit it as they are."""

from dataclasses import replace

import pytest
import torch

from efface.concept import Concept
from efface.digits import pipeline
from efface.digits.data import CLASSES
from efface.digits.experiment import FINETUNE, LIKE, TASK_VECTOR
from efface.errors import BadModel
from efface.models import schedulers
from efface.query import Query


def test_eps_is_the_noise_of_the_predicted_velocity(raw):
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 1, 28, 28, generator=g), torch.tensor([0, 300, 700, 999])
    c = raw.encode(["0", "1", "", "2"])
    v = raw.denoiser(x, t, c)[0]
    alpha, sigma = raw.levels(t)
    torch.testing.assert_close(raw.eps(x, t, c), alpha * v + sigma * x)
    torch.testing.assert_close(raw.eps(x, t, c), schedulers.to_eps(v, x, alpha, sigma, "v_prediction"))


def test_the_prompt_and_the_time_matter_and_the_empty_prompt_is_zero(raw):
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    c, null = raw.encode(["0"]), raw.encode([""])
    assert not null.any()
    outs = [raw.predict(x, 500, c), raw.predict(x, 500, null), raw.predict(x, 100, c)]
    assert all((a - b).abs().max() > 1e-3 for a, b in ((outs[0], outs[1]), (outs[0], outs[2])))


def test_latents_are_pixels(raw):
    images = torch.rand(2, 1, 28, 28).expand(-1, 3, -1, -1)
    torch.testing.assert_close(raw.decode(raw.encode_images(images)), images)
    assert raw.latent_shape == (1, 28, 28)


def test_an_image_depends_on_its_query_only(raw):
    queries = [Query("3", seed, 3, 1.0) for seed in range(3)] + [Query("3", 1, 3, 2.0)]
    together = raw.generate(queries)
    alone = raw.generate([queries[1]])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    assert (together[1] - together[3]).abs().max() > 1e-4  # guidance
    vector = replace(queries[1], prompt="", embeds=raw.encode(["3"])[0])
    torch.testing.assert_close(raw.generate([vector]), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [FINETUNE, TASK_VECTOR], ids=["fine-tuned", "task vector"])
def test_the_methods_edit_it(raw, method):
    quick = replace(method, steps=3, batch=4, images=6, image_steps=2, bf16=False)
    erase = [Concept("0", prompts=("0",), anchor=a) for a in ("1", "2")] if method is FINETUNE else ["0"]
    if method is TASK_VECTOR:
        erase = [Concept("0", prompts=("0",))]
    edit = quick(raw, erase)
    middle = {name for name in raw.weights() if ".mid" in name and ".conv1." in name}
    assert set(edit.delta) == (set(raw.weights()) if method is FINETUNE else middle)
    with edit.applied(raw) as edited, torch.no_grad():
        x, c = torch.randn(2, 1, 28, 28), raw.encode(["0"])
        assert (edited.eps(x, 500, c) - raw.eps(x, 500, c)).abs().max() > 1e-5
    with (0.0 * edit).applied(raw) as same, torch.no_grad():
        assert torch.equal(same.eps(x, 500, c), raw.eps(x, 500, c))


def test_fine_tuning_shows_the_anchors_under_the_target_and_under_their_own_names():
    erase = [Concept("0", anchor=a) for a in ("1", "2")]
    assert [pair for concept in erase for pair in FINETUNE.prompts(concept, ())] == [("1", "0"), ("2", "0")]


def test_a_model_without_weights_says_how_to_train_it(tmp_path):
    with pytest.raises(BadModel, match="efface digits train"):
        pipeline.load("mnist", tmp_path)


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_the_model_that_ships_draws_what_it_is_asked_for(dataset):
    model, judge = pipeline.load(dataset), pipeline.judge(dataset, second=True)
    queries = [replace(LIKE, prompt=name, seed=seed) for name in CLASSES[dataset] for seed in range(4)]
    named = judge.objects(model.generate(queries)).argmax(1)
    right = (named == torch.arange(10).repeat_interleave(4)).float().mean()
    assert right > (0.9 if dataset == "mnist" else 0.75)  # the judges name 99 and 90 % of real pictures
    assert model.id == pipeline.load(dataset).id


def test_the_judges_are_differentiable_and_say_what_they_are():
    judge = pipeline.judge("mnist")
    images = torch.rand(2, 3, 28, 28, requires_grad=True)
    judge.objects(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    right, count = judge.profile["held_out_accuracy"]
    assert count == 1000
    assert right > 980
    assert judge.profile["sha256"] != pipeline.judge("mnist", second=True).profile["sha256"]
