import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput
from efface.methods.finetune.method import Run
from efface.methods.kpop import KPOP
from efface.models.learned_prompt import prompted, unlocked


def fast(**fields):
    return KPOP(**{"steps": 3, "ddim_steps": 3, "batch": 2, "lr": 1e-3, "size": 1, "prompt_lr": 1e-2, **fields})


def train(model, erase=("church",), preserve=(), **fields):
    edit, by_products = fast(**fields).run(model, list(erase), list(preserve))
    return edit, by_products["key"]


def inputs(model, prompt="church"):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(8, *model.latent_shape, generator=rng), torch.arange(8) * 120 + 50, model.encode([prompt])


@torch.no_grad()
def gap(model, other, prompt="church"):
    """Return the mean square difference of two models' noise under a prompt."""
    return float((model.eps(*inputs(model, prompt)) - other.eps(*inputs(other, prompt))).square().mean())


def test_the_key_restores_what_was_erased(tiny):
    edit, key = train(tiny, steps=30, batch=4, lam=3.0, where="down-mid-up", lr=3e-3, prompt_lr=3e-2)
    with edit.applied(tiny) as sanitized:
        assert gap(unlocked(sanitized, key), tiny) < 0.5 * gap(sanitized, tiny)
    losses = edit.meta["training"]
    assert sum(losses["restored"][-10:]) < sum(losses["restored"][:10])
    assert len(losses["similarity"]) == len(losses["loss"]) == 30


def test_the_key_is_not_in_the_edit(tiny, tmp_path):
    edit, key = train(tiny)
    edit.save(tmp_path / "edit.safetensors")
    assert not edit.extra
    assert not any("prompt" in name for name in Edit.load(tmp_path / "edit.safetensors").delta)
    key.save(tmp_path / "key.safetensors")
    again = Edit.load(tmp_path / "key.safetensors")
    with edit.applied(tiny) as sanitized:
        assert gap(unlocked(sanitized, key), unlocked(sanitized, again)) == 0
    assert not key.delta


def test_alternation_of_equation_6_and_7(tiny):
    """With sgd, one step of the weights is −η ∇(L1 + λ L2) at the prompt that equation 6 left."""
    method = fast(optimizer="sgd", lr=1e-2, lam=0.7, batch=1)
    run = Run(method, tiny, (Concept("church"),), (), 0)
    loss = method.objective(run)
    before = run.state.tensors["prompt"].detach().clone()
    value = loss(0)
    after = run.state.tensors["prompt"].detach()
    assert 0 < float((after - before).abs().max()) <= 1.01e-2  # one step of Adam at 1e-2
    assert not any(p.grad is not None for p in run.weights.values())  # the prompt's step left no gradient behind
    value.backward()
    assert all(p.grad is not None for p in run.weights.values())
    assert float(value.detach()) > 0


@pytest.mark.parametrize("where", ["mid", "mid-up", "down-mid-up"])
def test_where_the_prompt_goes(tiny, where):
    names = [n for n, m in tiny.denoiser.named_modules() if getattr(m, "is_cross_attention", False)]
    seen = {}
    model = tiny.edited({name: p.data for name, p in tiny.weights().items()})
    view = prompted(model, torch.randn(1, 20, 32), "concat", where)
    for name in names:
        view.denoiser.get_submodule(name).to_k.register_forward_hook(
            lambda m, args, out, name=name: seen.__setitem__(name, args[0].shape[1])
        )
    view.eps(*inputs(model))
    reading = {name for name, length in seen.items() if length == 36}
    expected = {"mid": ("mid",), "mid-up": ("mid", "up"), "down-mid-up": ("mid", "up", "down")}[where]
    assert reading == {name for name in names if name.startswith(expected)}
    assert set(seen.values()) <= {16, 36}
    assert not any(m._forward_pre_hooks for m in model.denoiser.modules())


def test_mechanisms_that_change_nothing(tiny):
    """A concatenated copy of the text leaves every output as it is, and so does adding zero (section 4.3)."""
    plain, c = tiny.eps(*inputs(tiny)), tiny.encode(["church"]).tokens

    def eps(prompt, how):
        return prompted(tiny, prompt, how, "down-mid-up").eps(*inputs(tiny))

    torch.testing.assert_close(eps(c.repeat(1, 3, 1), "concat"), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(eps(torch.zeros_like(c), "add"), plain)
    assert not torch.allclose(eps(torch.randn(1, 16, 32), "add"), plain, atol=1e-3)


@pytest.mark.parametrize("fields", [{"where": "down-mid-up"}, {"mechanism": "add", "init": 0.5}])
def test_gradient_checkpointing_keeps_the_prompt(tiny, fields):
    """Layers that run again in the backward pass read the prompt as they did the first time."""
    fields |= {"optimizer": "sgd", "lr": 1e-2, "lam": 3.0}
    plain, key = train(tiny, **fields)
    spare, key2 = train(tiny, gradient_checkpointing=True, **fields)
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(key2.extra["prompt"], key.extra["prompt"], atol=1e-4, rtol=1e-3)


def test_additive(tiny):
    edit, key = train(tiny, mechanism="add", init=0.0, size=5)
    assert key.extra["prompt"].shape == (1, 16, 32)
    assert key.meta["key"]["where"] == "down-mid-up"
    with edit.applied(tiny) as sanitized:
        assert gap(unlocked(sanitized, key), sanitized) > 0


def test_size_and_several_concepts(tiny):
    _, key = train(tiny, erase=("church", "dog"), size=3)
    assert key.extra["prompt"].shape == (1, 48, 32)


def test_preserved_concepts_change_less(tiny):
    free, _ = train(tiny, steps=12, lr=3e-3, source="base")
    held, _ = train(tiny, preserve=["dog"], steps=12, lr=3e-3, source="base", preserve_weight=10.0)
    with free.applied(tiny) as a, held.applied(tiny) as b:
        assert gap(b, tiny, "dog") < 0.7 * gap(a, tiny, "dog")


def test_seed_presets_and_bad_input(tiny):
    (edit, key), (again, key2) = train(tiny), train(tiny)
    assert edit == again
    assert torch.equal(key.extra["prompt"], key2.extra["prompt"])
    assert fast()(tiny, ["church"]) == edit  # the key is lost when nobody asks for it
    assert KPOP.preset("paper") == KPOP()
    assert (KPOP().size, KPOP().lam, KPOP().where, KPOP().steps) == (10, 0.1, "mid", 1000)
    for fields in ({"size": 0}, {"prompt_steps": 0}, {"lam": -1.0}):
        with pytest.raises(BadInput, match="or more"):
            fast(**fields)
    with pytest.raises(BadEdit, match="not a key"):
        unlocked(tiny, edit)
    with pytest.raises(BadEdit, match="width 7, "):
        unlocked(tiny, Edit(extra={"prompt": torch.zeros(1, 2, 7)}, meta=key.meta))
