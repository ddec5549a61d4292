import pytest
import torch
from torch.nn.functional import mse_loss

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput, UnknownName
from efface.methods.finetune.method import Run
from efface.methods.kpop import KPOP
from efface.models.learned_prompt import prompted, unlocked
from efface.models.trajectory import partly_denoise
from efface.training.loop import generator


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


NUMBERS = {"lam": 0.7, "batch": 2, "prompt_lr": 1e-2, "where": "mid-up", "preserve_weight": 0.4, "guidance": 2.0}


def reading(model, p):
    """Return ε(z, t, c) of a model whose middle and upper blocks also read p, by hooks of its own."""

    def join(_, args, given):
        return args, {**given, "encoder_hidden_states": torch.cat([given["encoder_hidden_states"], p], 1)}

    def eps(z, t, c):
        layers = [
            layer
            for name, layer in model.denoiser.named_modules()
            if name.endswith("attn2") and name.startswith(("mid", "up"))
        ]
        hooks = [layer.register_forward_pre_hook(join, with_kwargs=True) for layer in layers]
        try:
            return model.eps(z, t, c)
        finally:
            for hook in hooks:
                hook.remove()

    return eps


def by_hand(base, student, prompts, rng, texts, own, keep="", neutral="a photo", source=None, prompt_steps=1):
    """Return L1 + λ L2 (+ the loss on a preserved concept) of NUMBERS, and the prompts, after eq. 6 moved them.

    prompts: (p, m, dim), before; own: the prompt of each text. Adam is written from its paper.
    """
    c_e, z_t = base.encode(texts), student if source is None else source
    z, t, row = partly_denoise(z_t, c_e, base.encode([""]), rng, 2, 2.0, 3)
    c, mine = c_e[row], [own[i] for i in row.tolist()]
    with torch.no_grad():
        e_e, e_n = base.eps(z, t, c), base.eps(z, t, base.encode([neutral]))
    moved, m, v = prompts.clone(), torch.zeros_like(prompts), torch.zeros_like(prompts)
    for k in range(1, prompt_steps + 1):
        p = moved.requires_grad_()
        g = torch.autograd.grad(mse_loss(reading(student, p[mine])(z, t, c), e_e), p)[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        moved = (p - 1e-2 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)).detach()
    value = mse_loss(student.eps(z, t, c), e_n) + 0.7 * mse_loss(reading(student, moved[mine])(z, t, c), e_e)
    if keep:
        torch.randint(1, (2,), generator=rng)  # which preserved concepts
        with torch.no_grad():
            e_k = base.eps(z, t, base.encode([keep]))
        value = value + 0.4 * mse_loss(student.eps(z, t, base.encode([keep])), e_k)
    return value, moved


def perturb(run, size=0.1):
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in run.weights.values():
            p.add_(size * torch.randn(p.shape, generator=rng))


def same_gradients(value, wanted, weights):
    for got, hand in zip(torch.autograd.grad(value, weights), torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(got, hand, rtol=1e-3, atol=1e-4 * float(hand.abs().max()) + 1e-9)


@pytest.mark.parametrize("fields", [{}, {"neutral": "art"}, {"source": "base"}, {"prompt_steps": 2}])
def test_loss_gradient_and_prompt_by_hand_after_the_student_has_moved(tiny, fields):
    run = Run(fast(**NUMBERS, **fields), tiny, (Concept("church"),), (Concept("dog"),), 0)
    perturb(run)
    loss = run.method.objective(run)
    before = run.state.tensors["prompt"].detach().clone()
    run.rng = generator(1)
    value = loss(0)
    source = tiny if fields.get("source") == "base" else None
    given = {name: value for name, value in fields.items() if name != "source"}
    wanted, moved = by_hand(tiny, run.student, before, generator(1), ["church"], [0], "dog", source=source, **given)
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(run.state.tensors["prompt"].detach(), moved, rtol=1e-3, atol=1e-4)
    same_gradients(value, wanted, list(run.weights.values()))


def test_a_prompt_for_each_concept_by_hand(tiny):
    """Each row reads the prompt of its concept, and a prompt whose concept is not in the batch stays as it was."""
    texts, own = ["church", "a red church", "dog", "a blue dog", "house", "a house"], [0, 0, 1, 1, 2, 2]
    concepts = [Concept(texts[i], prompts=(texts[i + 1],)) for i in (0, 2, 4)]
    stayed = set()
    for seed in range(4):
        run = Run(fast(**NUMBERS, keys="each", prompts="all"), tiny, tuple(concepts), (), 0)
        perturb(run)
        loss = run.method.objective(run)
        names = ["prompt.church", "prompt.dog", "prompt.house"]
        before = torch.cat([run.state.tensors[name].detach().clone() for name in names])
        run.rng = generator(seed)
        value = loss(0)
        wanted, moved = by_hand(tiny, run.student, before, generator(seed), texts, own)
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=0)
        after = torch.cat([run.state.tensors[name].detach() for name in names])
        torch.testing.assert_close(after, moved, rtol=1e-3, atol=1e-4)
        stayed |= {i for i in range(3) if torch.equal(after[i], before[i])}
    assert len(stayed) > 1


def test_a_prompt_stays_while_its_concept_is_not_drawn_later_on(tiny):
    """Adam's momentum must not move it either."""
    run = Run(fast(keys="each", batch=1), tiny, (Concept("church"), Concept("dog")), (), 0)
    loss, steps = run.method.objective(run), []
    for step in range(6):
        before = [run.state.tensors[f"prompt.{name}"].detach().clone() for name in ("church", "dog")]
        run.rng = generator(step)
        loss(step)
        after = [run.state.tensors[f"prompt.{name}"].detach() for name in ("church", "dog")]
        steps.append([torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert all(sorted(still) == [False, True] for still in steps)
    assert len({tuple(still) for still in steps}) == 2


def test_a_step_of_sgd_by_hand(tiny):
    """The second step of the weights leads from W1 to W1 − η ∇L at the prompt that two steps of eq. 6 left."""
    one, two = (train(tiny, optimizer="sgd", lr=1e-2, steps=n, **NUMBERS) for n in (1, 2))
    run = Run(fast(**NUMBERS), tiny, (Concept("church"),), (), 0)
    with torch.no_grad():
        for name, p in run.weights.items():
            p.add_(one[0].delta[name])
    z, t, row = partly_denoise(run.student, tiny.encode(["church"]), run.null, generator(0, 1, 0), 2, 2.0, 3)
    c = tiny.encode(["church"])[row]
    with torch.no_grad():
        e_e, e_n = tiny.eps(z, t, c), tiny.eps(z, t, tiny.encode(["a photo"]))
    p = two[1].extra["prompt"].expand(2, -1, -1)
    value = mse_loss(run.student.eps(z, t, c), e_n) + 0.7 * mse_loss(reading(run.student, p)(z, t, c), e_e)
    for name, slope in zip(run.weights, torch.autograd.grad(value, list(run.weights.values())), strict=True):
        step = two[0].delta[name] - one[0].delta[name]
        torch.testing.assert_close(step, -1e-2 * slope, rtol=2e-3, atol=1e-3 * float(step.abs().max()) + 1e-8)


def test_the_concept_moves_to_the_neutral_prompt(tiny):
    edit, _ = train(tiny, steps=10, lr=2e-3, source="base")
    z, t, _ = inputs(tiny)
    with edit.applied(tiny) as sanitized, torch.no_grad():
        e_n, c = tiny.eps(z, t, tiny.encode(["a photo"])), tiny.encode(["church"])
        before, after = (float((m.eps(z, t, c) - e_n).square().mean()) for m in (tiny, sanitized))
        moved = sanitized.eps(z, t, c) - tiny.eps(z, t, c)
        away = e_n - tiny.eps(z, t, c)
    assert after < 0.8 * before
    assert torch.nn.functional.cosine_similarity(moved.flatten(), away.flatten(), dim=0) > 0.3


@pytest.mark.slow
def test_the_prompts_own_steps_restore_the_concept(tiny):
    """Equations 5 and 6 without the second loss: only the prompt can bring the concept back, and it does."""
    losses = {}
    for rate in (1e-9, 5e-2):
        edit, _ = train(
            tiny, steps=40, batch=2, lr=1e-3, lam=0.0, prompt_lr=rate, init=0.3, where="down-mid-up", source="base"
        )
        training = edit.meta["training"]
        losses[rate] = sum(training["restored"][-15:])
        assert (training["prompt_moved"] > 0.3) == (rate > 1e-3)
    assert losses[5e-2] < 0.9 * losses[1e-9]


@pytest.mark.slow
def test_one_key_of_several_opens_its_concept_only(tiny):
    fields = {"steps": 60, "batch": 4, "lam": 3.0, "where": "down-mid-up", "lr": 3e-3, "prompt_lr": 3e-2}
    edit, key = train(tiny, erase=("church", "dog"), keys="each", **fields)
    assert set(key.extra) == {"prompt.church", "prompt.dog"}
    assert key.meta["key"]["concepts"] == ["church", "dog"]
    with edit.applied(tiny) as sanitized:
        for own, other in (("church", "dog"), ("dog", "church")):
            opened = unlocked(sanitized, key, own)
            assert gap(opened, tiny, own) < 0.5 * gap(sanitized, tiny, own)
            assert gap(opened, tiny, own) < 0.5 * gap(unlocked(sanitized, key, other), tiny, own)
        with pytest.raises(BadInput, match="choose one of them"):
            unlocked(sanitized, key)
        with pytest.raises(UnknownName, match="'house'"):
            unlocked(sanitized, key, "house")
        assert unlocked(sanitized, key, "church").id != unlocked(sanitized, key, "dog").id


def test_how_far_the_prompt_moved_is_on_record(tiny):
    start = fast(prompt_lr=1e-12).run(tiny, ["church"])[1]["key"].extra["prompt"]
    edit, key = train(tiny)
    moved = float((key.extra["prompt"] - start).norm() / start.norm())
    assert edit.meta["training"]["prompt_moved"] == pytest.approx(moved, rel=1e-3)
    assert moved > 0.01
    assert train(tiny, mechanism="add", init=0.0)[0].meta["training"]["prompt_moved"] is None


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
    for fields, length in (({"size": 3, "unit": "token"}, 3), ({"size": 3, "unit": "token", "mechanism": "add"}, 16)):
        assert train(tiny, erase=("church",), **fields)[1].extra["prompt"].shape == (1, length, 32)


@pytest.mark.slow
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
    for fields in ({"size": 0}, {"prompt_steps": 0}, {"lam": -1.0}, {"init": -1.0}):
        (name,) = fields
        with pytest.raises(BadInput, match=f"{name} must be from [01] to"):
            fast(**fields)
    with pytest.raises(BadInput, match=r"prompt_lr must be above 0 and at most 100, got 0\.0"):
        fast(prompt_lr=0.0)
    with pytest.raises(BadInput, match="accumulate"):
        fast(accumulate=2)
    assert (KPOP.preset("sibling-code").size, KPOP.preset("sibling-code").unit) == (1, "token")
    with pytest.raises(BadInput, match="reuse must divide batch 2, got 4"):
        fast(reuse=4)
    with pytest.raises(BadEdit, match="not a key"):
        unlocked(tiny, edit)
    with pytest.raises(BadEdit, match="width 7, "):
        unlocked(tiny, Edit(extra={"prompt": torch.zeros(1, 2, 7)}, meta=key.meta))
