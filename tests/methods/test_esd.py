import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.methods.esd import ESD
from efface.training.loop import Diverged

CHURCH = Concept("church", anchor="house")


def fast(**fields):
    return ESD(**{"steps": 3, "ddim_steps": 4, "batch": 2, "lr": 1e-3, **fields})


def test_both_formulations_agree(tiny):
    """e_c − 2 (e_c − e_0) = e_0 − (e_c − e_0): the 2025 code's target is the paper's."""
    paper, code = (
        fast(eta=1.0, around="null")(tiny, [CHURCH]),
        fast(eta=2.0, around="concept")(tiny, [CHURCH]),
    )
    torch.testing.assert_close(paper.meta["training"]["loss"], code.meta["training"]["loss"], rtol=1e-3, atol=0)
    assert fast(eta=2.0)(tiny, [CHURCH]) != paper


def test_the_loss_is_equation_7(tiny):
    """At the start the student is the base, so the loss is (1 + η)² ‖ε_c − ε_0‖²."""
    losses = [fast(steps=1, eta=eta)(tiny, [CHURCH]).meta["training"]["loss"][0] for eta in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(losses[1] / losses[0], 4.0, rtol=1e-2, atol=0)
    torch.testing.assert_close(losses[2] / losses[0], 16.0, rtol=1e-2, atol=0)


def test_training_approaches_the_target(tiny):
    z, t = torch.randn(8, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) * 120
    edit = fast(steps=12, batch=4, source="base")(tiny, [CHURCH])
    with edit.applied(tiny) as edited, torch.no_grad():
        c, null = tiny.encode(["church"]), tiny.encode([""])
        target = 2 * tiny.eps(z, t, null) - tiny.eps(z, t, c)
        before, after = ((m.eps(z, t, c) - target).square().mean() for m in (tiny, edited))
    assert after < 0.5 * before


@pytest.mark.parametrize("params", ["x", "x-strict", "u", "u-linear", "full", "selfattn"])
def test_variants_train_their_weights_only(tiny, params):
    names = set(fast(steps=1, params=params)(tiny, [CHURCH]).delta)
    cross = {name for name in tiny.weights() if ".attn2." in name}
    rest = set(tiny.weights()) - cross
    expected = {
        "x": cross,
        "x-strict": set(tiny.text_weights()),
        "u": {n for n in rest if not n.startswith(("unet.time_", "unet.conv_out", "unet.conv_norm"))},
        "u-linear": {n for n in rest if "norm" not in n},
        "full": set(tiny.weights()),
        "selfattn": {n for n in tiny.weights() if ".attn1." in n},
    }
    assert names == expected[params]


def test_seed_and_source_matter(tiny):
    edit = fast()(tiny, [CHURCH])
    assert fast()(tiny, [CHURCH]) == edit
    assert fast()(tiny, [CHURCH], seed=1) != edit
    assert fast(source="base")(tiny, [CHURCH]) != edit
    assert fast(steps=1, source="base")(tiny, [CHURCH]) == fast(steps=1)(tiny, [CHURCH])


def test_anchor_and_several_concepts(tiny):
    edit = fast(around="anchor")(tiny, [CHURCH])
    assert edit != fast(around="anchor")(tiny, [Concept("church", anchor="castle")])
    assert fast()(tiny, ["church", "dog"]) != fast()(tiny, ["church"])
    assert fast(prompts="all", batch=4, reuse=2)(tiny, [CHURCH]).delta


def test_v_prediction(tiny2):
    assert all(d.isfinite().all() for d in fast()(tiny2, ["church"]).delta.values())


def test_presets():
    assert ESD.preset("paper") == ESD()
    assert (ESD().steps, ESD().lr, ESD().eta, ESD().batch) == (1000, 1e-5, 1.0, 1)
    code = ESD.preset("repo-2025")
    assert (code.steps, code.lr, code.eta, code.around, code.source) == (200, 5e-5, 2.0, "concept", "base")


def test_bad_input(tiny):
    with pytest.raises(Diverged, match="esd church: the loss is"):
        fast(lr=1e30)(tiny, ["church"])
    for fields in ({"reuse": 3}, {"reuse": 0}, {"ddim_steps": 0}, {"ddim_steps": 1001}):
        with pytest.raises(BadInput):
            fast(**fields)(tiny, ["church"])
    for name in ("around", "source", "prompts"):
        method = fast()
        object.__setattr__(method, name, "far")  # past the type check of the tests
        with pytest.raises(UnknownName, match=f"unknown value of {name} 'far'"):
            method.__post_init__()
