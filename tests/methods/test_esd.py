import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.methods.esd import ESD
from efface.methods.finetune.method import Run
from efface.models.trajectory import partly_denoise
from efface.training.loop import Diverged, generator

CHURCH = Concept("church", anchor="house")
DOG = Concept("dog", anchor="cat")
ONE_STEP = {"steps": 1, "optimizer": "sgd", "lr": 0.1, "clip": 0.5, "weight_decay": 0.01}


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


@pytest.mark.parametrize("source", ["student", "base"])
@pytest.mark.parametrize("around", ["null", "concept", "anchor", "from"])
def test_loss_and_step_by_hand(tiny, around, source):
    prompt = "a house" if around == "from" else ""
    fields = {"around": "concept" if prompt else around, "erase_from": prompt, "source": source, "eta": 1.5}
    run, loss = moved(fast(**ONE_STEP | fields, jitter=False, reuse=2, batch=4), tiny, CHURCH, DOG)
    null, erased, anchors = (tiny.encode(texts) for texts in ([""], ["church", "dog"], ["house", "cat"]))
    trained = tiny.encode([prompt] * 2) if prompt else erased

    def by_hand(run, rng):
        drawer = {"student": run.student, "base": tiny}[source]
        z, t, row = partly_denoise(drawer, trained, null, rng, 4, 3.0, 4, reuse=2, jitter=False)
        assert len(set(row.tolist())) == 2
        with torch.no_grad():
            e_e, e_0, e_c, e_a = (tiny.eps(z, t, c) for c in (erased[row], null, trained[row], anchors[row]))
        start = {"null": e_0, "concept": e_e, "anchor": e_a, "from": e_c}[around]
        return (run.student.eps(z, t, trained[row]) - (start - 1.5 * e_e + 1.5 * e_0)).square().mean()

    check_step(run, loss, by_hand)


def test_erasing_from_a_prompt_trains_that_prompt(tiny):
    """ε(from) goes to ε(from) − η (ε(church) − ε(∅)), as the 2025 code has it."""
    z, t = torch.randn(8, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) * 120
    edit = fast(steps=12, batch=4, source="base", around="concept", erase_from="a house", eta=2.0)(tiny, [CHURCH])
    with edit.applied(tiny) as edited, torch.no_grad():
        c, null, e = tiny.encode(["a house"]), tiny.encode([""]), tiny.encode(["church"])
        target = tiny.eps(z, t, c) - 2 * (tiny.eps(z, t, e) - tiny.eps(z, t, null))
        before, after = ((m.eps(z, t, c) - target).square().mean() for m in (tiny, edited))
    assert after < 0.5 * before


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
    trained = {name: ESD.preset(name).params for name in ESD.PRESETS}
    assert trained == {
        "paper": "x", "paper-u": "u", "repo-2025": "x", "repo-2025-x-strict": "x-strict", "repo-2025-u": "u-linear",
        "repo-2025-sdxl": "x", "repo-2025-sdxl-u": "u-linear", "mini": "x", "mini-u": "u",
    }  # fmt: skip
    xl = ESD.preset("repo-2025-sdxl")
    assert (xl.steps, xl.lr, xl.eta, xl.guidance) == (200, 2e-4, 1.0, 2.0)
    xl = ESD.preset("repo-2025-sdxl-u")
    assert (xl.steps, xl.lr, xl.eta, xl.guidance) == (200, 1e-5, 1.0, 2.0)
    for name in ESD.PRESETS:  # whole networks do not fit otherwise; mini's does
        assert ESD.preset(name).gradient_checkpointing == (trained[name].startswith("u") and "mini" not in name)


def test_bad_input(tiny):
    wild = fast()
    object.__setattr__(wild, "lr", 1e30)  # past the range of lr, within which this network stays finite
    with pytest.raises(Diverged, match="esd church: the loss is"):
        wild(tiny, ["church"])
    for fields in ({"reuse": 3}, {"reuse": 0}, {"ddim_steps": 0}, {"ddim_steps": 1001}):
        with pytest.raises(BadInput):
            fast(**fields)(tiny, ["church"])
    with pytest.raises(BadInput, match=r"erase_from needs around = concept .*got null"):
        fast(erase_from="a house")
    for name in ("around", "source", "prompts"):
        method = fast()
        object.__setattr__(method, name, "far")  # past the type check of the tests
        with pytest.raises(UnknownName, match=f"unknown value of {name} 'far'"):
            method.__post_init__()
