import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.method import Run
from efface.methods.surgical import Surgical, _signed
from efface.models.attention import positions, scaled_maps


def fast(**fields):
    quick = {"steps": 3, "ddim_steps": 4, "batch": 2, "lr": 1e-3, "warmup": 0, "start": 0.0, "weight_decay": 0.0}
    return Surgical(**{**quick, **fields})


def null_gradient(model, penalty: float, moved: bool) -> float:
    """Return the norm of the loss's gradient with respect to the empty prompt's context."""
    method = fast(penalty=penalty)
    run = Run(method, model, (Concept("church"),), (), 0)
    loss = method.objective(run)
    run.null.tokens.requires_grad_()
    if moved:
        with torch.no_grad():
            for p in run.weights.values():
                p.add_(0.1 * torch.randn(p.shape, generator=run.rng))
    loss(0).backward()
    assert all(p.grad is not None for p in run.weights.values())
    return 0.0 if run.null.tokens.grad is None else float(run.null.tokens.grad.norm())


def test_the_first_term_does_not_reach_the_unconditional_branch(tiny):
    assert null_gradient(tiny, penalty=0.0, moved=True) == 0
    assert null_gradient(tiny, penalty=1.0, moved=True) > 0


def test_penalty_pulls_the_unconditional_noise_back(tiny):
    z, t, null = torch.randn(8, *tiny.latent_shape), torch.full((8,), 500), tiny.encode([""])
    moves = []
    for penalty in (0.0, 1000.0):
        with fast(penalty=penalty, steps=8, ddim_steps=2)(tiny, ["church"]).applied(tiny) as edited, torch.no_grad():
            moves.append(float((edited.eps(z, t, null) - tiny.eps(z, t, null)).norm()))
    assert moves[1] < 0.5 * moves[0]


def test_without_a_signal_nothing_moves(tiny):
    """δ = 0 makes the student's goal its own start (up to rounding, so with sgd, which does not blow it up)."""
    still = fast(end=-1.0, optimizer="sgd")(tiny, ["church"])
    moved = fast(optimizer="sgd")(tiny, ["church"])
    assert still.meta["training"]["loss"][0] < 1e-9 < moved.meta["training"]["loss"][0]
    largest = [max(float(d.abs().max()) for d in edit.delta.values()) for edit in (still, moved)]
    assert largest[0] < 1e-3 * largest[1]


def test_signals(tiny):
    """At the first step the loss is the mean square of δ."""
    losses = {
        instruct: fast(steps=1, instruct=instruct)(tiny, ["church"]).meta["training"]["loss"][0]
        for instruct in [(), ("-7.5:church",), ("-15:church",), ("-7.5:dog",), ("-7.5:church", "7.5:church")]
    }
    assert losses[()] == losses[("-7.5:church",)]
    assert losses[("-7.5:dog",)] != losses[()]
    assert losses[("-7.5:church", "7.5:church")] < 1e-9
    anchored = fast(steps=1)(tiny, [Concept("church", anchor="dog")])
    assert anchored == fast(steps=1, instruct=("-7.5:church", "6.5:dog"))(tiny, [Concept("church")])
    assert fast(steps=1, signal="implicit")(tiny, ["church"]) != fast(steps=1)(tiny, ["church"])


def test_kappa_keeps_the_largest_values(tiny):
    method = fast(kappa=0.95)
    run = Run(method, tiny, (Concept("church"),), (), 0)
    z, t, row = run.noise(2), torch.tensor([1, 751]), torch.zeros(2, dtype=torch.long)
    cond, uncond = run.base.denoise(z, t, run.contexts(["church"]), run.null)
    delta = method._delta(run, method._prompts(run), z, t, row, cond, uncond)
    assert (delta != 0).flatten(2).sum(2).tolist() == [[4] * 4] * 2  # 5 % of 64, rounded up
    nonzero = delta != 0
    torch.testing.assert_close(delta[nonzero], -7.5 * (cond - uncond)[nonzero], rtol=1e-3, atol=1e-6)


def test_window_of_steps(tiny):
    method = fast(ddim_steps=10, warmup=2, start=0.35, kappa=0.0)
    run = Run(method, tiny, (Concept("church"),), (), 0)
    t = torch.arange(10) * 100 + 1
    z, row = run.noise(10), torch.zeros(10, dtype=torch.long)
    cond, uncond = run.base.denoise(z, t, run.contexts(["church"]), run.null)
    delta = method._delta(run, method._prompts(run), z, t, row, cond, uncond)
    assert delta.flatten(1).any(1).tolist() == [True] * 7 + [False] * 3  # the three noisiest levels are left alone


def test_scaled_maps(tiny):
    z, t, c = torch.randn(2, *tiny.latent_shape), torch.tensor([500, 500]), tiny.encode(["church", "church"])
    plain = tiny.eps(z, t, c)
    before = dict(tiny.denoiser.attn_processors)
    scale = torch.ones(2, 16)
    scale[1, positions(tiny, "church", "church")] = 0
    with scaled_maps(tiny, scale):
        changed = tiny.eps(z, t, c)
    torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-4)
    assert (changed[1] - plain[1]).abs().max() > 1e-4
    assert tiny.denoiser.attn_processors == before
    torch.testing.assert_close(tiny.eps(z, t, c), plain, atol=0, rtol=0)


def test_positions(tiny):
    assert positions(tiny, "a red church", "church") == [3]
    assert (
        positions(tiny, "red car and a red car", "red car")
        == [1, 2, 5, 6][: len(positions(tiny, "red car", "red car")) * 2]
    )
    assert positions(tiny, "a dog", "church") == []


def test_seed_presets_and_bad_input(tiny):
    edit = fast(steps=1)(tiny, ["church"])
    assert fast(steps=1)(tiny, ["church"]) == edit != fast(steps=1)(tiny, ["church"], seed=1)
    assert Surgical.preset("paper") == Surgical()
    assert (Surgical().gamma1, Surgical().gamma2, Surgical().ddim_steps, Surgical().penalty) == (7.5, 7.5, 35, 1.0)
    assert _signed("-7.5: gun") == (-7.5, "gun")
    with pytest.raises(BadInput, match="an instruction looks like"):
        fast(instruct=("gun",))(tiny, ["church"])
