import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.method import Run
from efface.methods.sa import SA, _surrogates

CHURCH = Concept("church", anchor="house")


def fast(**fields):
    return SA(**{**SA.QUICK, "steps": 3, "lr": 1e-3, "weight_decay": 0.0, "params": "x", **fields})


def moved(edit):
    return float(torch.stack([d.square().sum() for d in edit.delta.values()]).sum().sqrt())


def test_a_large_penalty_keeps_weights_near_their_start(tiny):
    """Adam's first step does not see the penalty, so a run with λ → ∞ stays within a few steps of its start."""
    steps = 15
    one = moved(fast(steps=1, penalty=0.0)(tiny, [CHURCH]))
    free, held = (moved(fast(steps=steps, penalty=w)(tiny, [CHURCH])) for w in (0.0, 1e9))
    assert held < 0.7 * free
    assert held < 4 * one


def test_sgd_with_the_penalty_is_its_closed_form(tiny):
    """One step of sgd from θ*: no penalty yet. In the second, its gradient is 2 λ F (θ − θ*)."""
    lr, weight = 1e-3, 3.0
    options = {"optimizer": "sgd", "lr": lr}
    first = fast(steps=1, **options)(tiny, [CHURCH]).delta
    with_penalty = fast(steps=2, penalty=weight, **options)(tiny, [CHURCH]).delta
    without = fast(steps=2, penalty=0.0, **options)(tiny, [CHURCH]).delta
    method = fast(**options)
    run = Run(method, tiny, (CHURCH,), (), 0)
    fisher = capture_fisher(method, run)
    for name, theta in first.items():
        expected = -lr * 2 * weight * fisher[name] * theta
        torch.testing.assert_close(with_penalty[name] - without[name], expected, atol=2e-8, rtol=2e-2)


def capture_fisher(method, run):
    """Return the Fisher information that the objective computes once."""
    made = {}
    once = run.once
    run.once = lambda stage, make: made.setdefault(stage, once(stage, make))
    method.objective(run)
    return made["fisher"]


def test_fisher_is_the_mean_squared_gradient(tiny):
    """With one image and one timestep F is the square of 1,000 times the gradient, here by finite differences."""
    method = fast(fisher_images=1, fisher_times=1)
    run = Run(method, tiny, (CHURCH,), (), 0)
    latents, contexts = run.noise(1), run.contexts(["dog"])
    state = run.rng.get_state()
    fisher = method._fisher(run, latents, contexts)
    name = max(fisher, key=lambda n: float(fisher[n].max()))
    place = divmod(int(fisher[name].argmax()), fisher[name].shape[-1])
    losses, step = [], 1e-2
    for sign in (1, -1):
        with torch.no_grad():
            run.weights[name].view(fisher[name].shape)[place] += sign * step
            run.rng.set_state(state)
            t, noise = run.times(1), run.noise(1)
            alpha, sigma = tiny.levels(t)
            losses.append(
                float((run.student.eps(alpha * latents + sigma * noise, t, contexts) - noise).square().mean())
            )
            run.weights[name].view(fisher[name].shape)[place] -= sign * step
    slope = 1000 * (losses[0] - losses[1]) / (2 * step)
    assert float(fisher[name][place]) == pytest.approx(slope**2, rel=0.1)


def test_preserved_concepts_are_replayed(tiny):
    assert fast()(tiny, [CHURCH], ["dog"]) != fast()(tiny, [CHURCH], ["car"])
    assert fast(contents=("dog",))(tiny, [CHURCH]) == fast()(tiny, [CHURCH], ["dog"])
    assert fast(replay=0.0)(tiny, [CHURCH]) != fast()(tiny, [CHURCH])


def test_surrogates():
    assert _surrogates(CHURCH) == ["a photo of house"]
    assert _surrogates(Concept("church", prompts=("a church", "god"), family="building")) == [
        "a building",
        "a photo of building",
    ]
    assert _surrogates(Concept("church")) == [""]
    assert _surrogates(Concept("neon", kind="style", anchor="sketch")) == ["a painting in the style of sketch"]


def test_seed_presets_and_bad_input(tiny):
    assert fast()(tiny, [CHURCH]) == fast()(tiny, [CHURCH])
    assert fast()(tiny, [CHURCH]) != fast()(tiny, [CHURCH], seed=1)
    assert SA.preset("paper") == SA()
    assert (SA().penalty, SA().batch, SA().params) == (50.0, 16, "full")
    for fields in ({"fisher_images": 0}, {"fisher_times": 0}, {"penalty": -1.0}):
        with pytest.raises(BadInput, match="or more"):
            fast(**fields)
