import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.ca import CA
from efface.methods.finetune.images import generated_latents
from efface.methods.finetune.method import Run, checkpoints
from efface.methods.negative import NegativePrompt
from efface.methods.sa import SA
from efface.models.model import Model
from efface.query import Query
from efface.training.loop import generator

CHURCH = Concept("church", anchor="house")
PROMPTS = ("a church", "a house", "a dog")


def start(tiny, seed=0):
    return Run(CA(**CA.QUICK), tiny, (CHURCH,), (), seed)


def made(run, stage="anchors", count=7, batch=4, **options):
    return generated_latents(run, stage, PROMPTS, count, 2, 6.0, batch, **options)


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_the_batch_size_changes_rounding_only(tiny, batch):
    latents = made(start(tiny))
    torch.testing.assert_close(made(start(tiny), batch=batch), latents, atol=1e-4, rtol=1e-4)
    assert len(latents) == 7


def test_an_image_is_that_of_its_prompt_and_its_own_seed(tiny):
    latents = made(start(tiny, seed=5))
    for i in (0, 4, 6):
        query = Query(PROMPTS[i % 3], generator(5, "anchors", i).initial_seed(), 2, 6.0, solver="dpm++")
        torch.testing.assert_close(latents[i : i + 1], tiny.sample([query]), atol=1e-4, rtol=1e-4)


def test_seed_and_stage_change_every_image(tiny):
    latents = made(start(tiny))
    for other in (made(start(tiny, seed=1)), made(start(tiny), stage="replay")):
        assert all(not torch.allclose(a, b, atol=0.1) for a, b in zip(latents, other, strict=True))


def test_fewer_images_are_the_first_of_more(tiny):
    torch.testing.assert_close(made(start(tiny), count=3), made(start(tiny))[:3], atol=1e-4, rtol=1e-4)


def test_images_are_the_original_models(tiny):
    run = start(tiny)
    with torch.no_grad():
        for p in run.weights.values():
            p *= 3
    assert torch.equal(made(run), made(start(tiny)))


def test_each_prompt_has_its_negative_prompt(tiny):
    away = ("a car", "a fox", "a wolf")
    latents = made(start(tiny), count=6, negative=away)
    for i in range(6):
        guarded = NegativePrompt(away[i % 3])(tiny, ["car"])
        query = Query(PROMPTS[i % 3], generator(0, "anchors", i).initial_seed(), 2, 6.0, solver="dpm++")
        with guarded.applied(tiny) as model:
            torch.testing.assert_close(latents[i : i + 1], model.sample([query]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents, made(start(tiny), count=6), atol=1e-2)


def test_a_resumed_run_reads_finished_batches(tiny, tmp_path, monkeypatch):
    with checkpoints(tmp_path):
        latents = made(start(tiny))
        (tmp_path / "anchors-4.safetensors").unlink()
        calls = []
        sample = Model.sample
        monkeypatch.setattr(Model, "sample", lambda self, queries: calls.append(len(queries)) or sample(self, queries))
        assert torch.equal(made(start(tiny)), latents)
    assert calls == [3]


@pytest.mark.parametrize("method", [CA(**CA.QUICK), SA(**SA.QUICK)], ids=["ca", "sa"])
def test_preparation_runs_under_the_autocast_of_its_caller(tiny, method, monkeypatch):
    """Images and Fisher information alike; what is kept of them is in float32."""
    states, grads = [], []
    predict = type(tiny.family).predict

    def recorded(self, x, t, c):
        states.append(torch.is_autocast_enabled("cpu"))
        grads.append(torch.is_grad_enabled())
        return predict(self, x, t, c)

    monkeypatch.setattr(type(tiny.family), "predict", recorded)
    run = Run(method, tiny, (CHURCH,), (), 0)
    kept = {}
    once = run.once
    run.once = lambda stage, make: kept.setdefault(stage, once(stage, make))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.objective(run)
        value = loss(0)
    assert all(states)
    assert set(grads) == {True, False}
    assert all(t.dtype == torch.float32 and t.isfinite().all() for stage in kept.values() for t in stage.values())
    value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in run.weights.values())
    assert any(p.grad is not None and p.grad.any() for p in run.weights.values())


def test_bad_input(tiny):
    for options, message in (
        ({"count": 0}, "images must be at least 1, got 0"),
        ({"batch": 0}, "image_batch must be at least 1, got 0"),
        ({"negative": ("a car",)}, "1 negative prompts do not fit 3 prompts"),
    ):
        with pytest.raises(BadInput, match=message):
            made(start(tiny), **options)
