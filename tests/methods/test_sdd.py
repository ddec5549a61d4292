import pytest
import torch

from efface.errors import BadInput
from efface.methods import sdd
from efface.methods.finetune.method import Run
from efface.methods.sdd import SDD
from efface.models.trajectory import partly_denoise

track_average = Run.track_average


def fast(**fields):
    return SDD(**{"steps": 3, "ddim_steps": 4, "batch": 2, "lr": 1e-3, "decay": 0.5, **fields})


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
    fast(steps=1, joined="loss")(tiny, ["church", "dog"])
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
    assert SDD.preset("paper").joined == "loss"
    with pytest.raises(BadInput, match="decay must be between 0 and 1"):
        fast(decay=1.5)
