import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods import sdd
from efface.methods.finetune.method import Run
from efface.methods.sdd import SDD
from efface.models.trajectory import partly_denoise
from efface.training.loop import generator

track_average = Run.track_average


def fast(**fields):
    return SDD(**{"steps": 3, "ddim_steps": 4, "batch": 2, "lr": 1e-3, "decay": 0.5, **fields})


def moved(method, model, *concepts):
    """Return a run whose student has left the base, and its loss."""
    run = Run(method, model, concepts, (), 0)
    loss, rng = method.objective(run), generator(1)
    with torch.no_grad():
        for p in (*run.masters.values(), *run.means.values()):
            p += 0.05 * torch.randn(p.shape, generator=rng)
    run._publish()
    return run, loss


def check_step(run, loss, by_hand):
    """Check a loss and a step of clipped SGD with weight decay; by_hand: (run, its random numbers) -> the loss."""
    method, before = run.method, {name: p.detach().clone() for name, p in run.masters.items()}
    value = by_hand(run, generator(0, 0, 0))
    gradients = torch.autograd.grad(value, list(run.weights.values()), allow_unused=True)
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    run.descend(loss)
    assert run.state.history["loss"][-1] == pytest.approx(float(value.detach()), rel=1e-4)
    for (name, old), g in zip(before.items(), gradients, strict=True):
        scale = min(1.0, method.clip / float(norm))
        step = torch.zeros_like(old) if g is None else method.lr * (scale * g + method.weight_decay * old)
        torch.testing.assert_close(old - run.masters[name].detach(), step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("concepts", ["iterative", "random", "sequential", "composite", "swapped"])
def test_loss_and_step_by_hand(tiny, concepts):
    """Both predictions are the student's, and no gradient flows through the one without a prompt."""
    one_step = {"steps": 1, "optimizer": "sgd", "lr": 0.1, "clip": 0.5, "weight_decay": 0.01}
    method = fast(**one_step, concept_method=concepts, batch=3, decay=0.9)
    run, loss = moved(method, tiny, Concept("church"), Concept("dog"))
    null, single, joined = (tiny.encode(texts) for texts in ([""], ["church", "dog"], ["church, dog"]))
    means = {name: mean.clone() for name, mean in run.means.items()}

    def by_hand(run, rng):
        drawn = single if concepts == "swapped" else joined
        z, t, _ = partly_denoise(tiny.edited(run.means), drawn, null, rng, 3, 3.0, 4)
        row = {"iterative": torch.tensor([0, 1, 0]), "sequential": torch.zeros(3, dtype=torch.long)}.get(concepts)
        if concepts == "random":
            row = torch.randint(2, (3,), generator=rng)
        c = joined if row is None else single[row]
        target = run.student.eps(z, t, null).detach()
        return (run.student.eps(z, t, c) - target).square().mean()

    check_step(run, loss, by_hand)
    for name, mean in run.means.items():
        torch.testing.assert_close(mean, 0.9 * means[name] + 0.1 * run.masters[name].detach(), rtol=1e-4, atol=1e-7)


def test_sequential_gives_every_concept_the_same_share(tiny, monkeypatch):
    seen, eps = [], type(tiny).eps
    method = fast(concept_method="sequential", steps=6, batch=1, ddim_steps=1)
    run = Run(method, tiny, tuple(map(Concept, ("church", "dog", "cat"))), (), 0)
    loss, texts = method.objective(run), tiny.encode(["church", "dog", "cat"]).tokens

    def spy(model, z, t, c):
        seen.extend(i for i in range(3) if torch.allclose(c.tokens[0], texts[i]))
        return eps(model, z, t, c)

    monkeypatch.setattr(type(tiny), "eps", spy)
    run.descend(loss)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_the_edit_is_the_moving_average(tiny):
    """After one step from W: W + (1 − m)(W' − W)."""
    student, half = fast(steps=1, decay=0.0)(tiny, ["church"]), fast(steps=1, decay=0.5)(tiny, ["church"])
    for name, delta in student.delta.items():
        torch.testing.assert_close(half.delta[name], delta / 2, atol=1e-7, rtol=1e-4)
    still = fast(decay=1.0)(tiny, ["church"])
    assert not any(delta.any() for delta in still.delta.values())


def test_the_moving_average_generates_from_the_joined_concepts(tiny, monkeypatch):
    calls, runs = [], []

    def spy(model, contexts, *rest, **options):
        calls.append((model, contexts))
        return partly_denoise(model, contexts, *rest, **options)

    monkeypatch.setattr(sdd, "partly_denoise", spy)
    monkeypatch.setattr(Run, "track_average", lambda run, decay: runs.append(run) or track_average(run, decay))
    fast(steps=1)(tiny, ["church", "dog"])
    fast(steps=1, concept_method="swapped")(tiny, ["church", "dog"])
    assert [model for model, _ in calls] == [run.average for run in runs]
    torch.testing.assert_close(calls[0][1].tokens, tiny.encode(["church, dog"]).tokens)
    torch.testing.assert_close(calls[1][1].tokens, tiny.encode(["church", "dog"]).tokens)


def test_the_concept_moves_to_the_empty_prompt(tiny):
    z, t = torch.randn(8, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) * 120
    edit = fast(steps=15, ddim_steps=2, batch=4, lr=1e-4, decay=0.0)(tiny, ["church"])
    with edit.applied(tiny) as edited, torch.no_grad():
        c, null = tiny.encode(["church"]), tiny.encode([""])
        before, after = ((m.eps(z, t, c) - tiny.eps(z, t, null)).square().mean() for m in (tiny, edited))
    assert after < 0.8 * before


def test_seed_presets_and_bad_input(tiny):
    assert fast()(tiny, ["church"]) == fast()(tiny, ["church"])
    assert fast()(tiny, ["church"]) != fast()(tiny, ["church"], seed=1)
    assert SDD.preset("repo") == SDD()
    assert SDD().concept_method == "iterative"
    assert SDD.preset("paper").concept_method == "swapped"
    with pytest.raises(BadInput, match="decay must be from 0 to 1"):
        fast(decay=1.5)
