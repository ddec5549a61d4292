import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune import textual_inversion
from efface.methods.finetune.method import Run
from efface.methods.finetune.textual_inversion import invert
from efface.methods.fmn import FMN
from efface.models.attention import Recorder, end_positions, recorded
from efface.training.checkpoints import State
from efface.training.loop import generator


def fast(**fields):
    return FMN(**{"steps": 3, "batch": 2, "lr": 1e-4, "images": 4, "image_steps": 2, **fields})


def attention(model, prompt, position):
    """Return the mean probability of attending to a position."""
    z, t = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.full((4,), 500)
    with recorded(model) as maps, torch.no_grad():
        model.eps(z, t, model.encode([prompt]))
    return torch.stack([m[..., position].mean() for layer in maps.values() for m in layer]).mean()


def test_attention_to_the_words_falls(tiny):
    edit = fast(steps=20, lr=1e-3)(tiny, ["church"])
    losses = edit.meta["training"]["loss"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    with edit.applied(tiny) as edited:
        assert attention(edited, "a photo of church", 4) < 0.8 * attention(tiny, "a photo of church", 4)


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


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("norm", ["joint", "mean"])
def test_loss_and_step_by_hand(tiny, norm, pooler):
    """Two concepts of one and two words; the norm is that of the student's maps."""
    one_step = {"steps": 1, "optimizer": "sgd", "lr": 0.1, "clip": 0.5, "weight_decay": 0.01}
    concepts = Concept("church", prompts=("a photo of church",)), Concept("red bus", prompts=("a red bus",))
    method = fast(**one_step, norm=norm, pooler=pooler, batch=4, images=2)
    run, loss = moved(method, tiny, *concepts)
    clean = torch.cat([method._concept(run, i, concept)[0] for i, concept in enumerate(concepts)])
    c = tiny.encode(["a photo of church", "a red bus"])
    places = [[4], [2, 3]] if not pooler else [[4, *range(5, 16)], [2, 3, *range(4, 16)]]

    def by_hand(run, rng):
        chosen = torch.randint(4, (4,), generator=rng)
        t = torch.randint(1000, (4,), generator=rng)
        noise = torch.randn(4, *tiny.latent_shape, generator=rng)
        assert len(set((chosen // 2).tolist())) == 2
        alpha, sigma = tiny.levels(t)
        recorders = [p for p in run.student.denoiser.attn_processors.values() if isinstance(p, Recorder)]
        for recorder in recorders:
            recorder.maps.clear()
        run.student.eps(alpha * clean[chosen] + sigma * noise, t, c[chosen // 2])
        words = [
            [m[i][..., places[int(chosen[i]) // 2]] for i in range(4)] for recorder in recorders for m in recorder.maps
        ]
        assert len(words) == 4
        if norm == "joint":
            return torch.cat([one.flatten() for layer in words for one in layer]).square().sum().sqrt()
        return sum(sum(one.square().sum().sqrt() for one in layer) / 4 for layer in words) / 4

    check_step(run, loss, by_hand)


def mask(model, **fields):
    method = fast(**fields)
    found = method._concept(Run(method, model, (Concept("church"),), (), 0), 0, Concept("church"))
    return found[2].nonzero().flatten().tolist()


@pytest.mark.parametrize("inversion_steps", [0, 1])
def test_pooler_adds_the_end_token(tiny, tiny2, inversion_steps):
    """Stable Diffusion 1.x pads with the end token; 2.x pads with another, whose positions are left out."""
    words = [4] if not inversion_steps else [4, 5, 6, 7]
    end = words[-1] + 1
    assert mask(tiny, inversion_steps=inversion_steps) == words
    assert mask(tiny, inversion_steps=inversion_steps, pooler=True) == [*words, *range(end, 16)]
    tiny2.pipe.tokenizer = copy.deepcopy(tiny2.pipe.tokenizer)
    tiny2.pipe.tokenizer.pad_token = "!"
    assert end_positions(tiny2, "a photo of church") == [5]
    assert mask(tiny2, inversion_steps=inversion_steps, pooler=True) == [*words, end]


def test_prompts_are_those_of_its_code(tiny):
    run = Run(fast(), tiny, (), (), 0)
    for concept, text in [
        (Concept("church"), "a photo of church"),
        (Concept("neon", kind="style"), "a photo in the style of neon"),
        (Concept("neon", kind="style", prompts=("a neon house", "neon")), "a neon house"),
    ]:
        assert torch.equal(fast()._concept(run, 0, concept)[1].tokens, tiny.encode([text]).tokens)


def test_inversion_learns_vectors_in_the_words_place(tiny):
    run = Run(fast(), tiny, (Concept("red church"),), (), 0)
    latents = run.noise(4)
    found = invert(run, latents, "a photo of {} by a house", "red church", "inversion-0", 3, 1e-2, 4, 0.1, 0.0)
    assert found.at == [4, 5, 6, 7]
    assert found.ends == list(range(11, 16))
    plain = tiny.encode(["a photo of a a a a by a house"]).tokens
    assert torch.allclose(found.context.tokens[:, :4], plain[:, :4], atol=1e-5)  # a causal encoder
    assert not torch.allclose(found.context.tokens[:, 4:], plain[:, 4:], atol=1e-2)
    assert torch.equal(tiny.encode(["a photo of a a a a by a house"]).tokens, plain)  # the hook is gone
    assert all(p.grad is None for p in tiny.weights("").values())


@pytest.mark.parametrize("length", [0.0, 0.4])
def test_a_step_of_the_inversion_by_hand(tiny, monkeypatch, length):
    """From two words and two random vectors: AdamW with weight decay 0.1, then lengths a tenth nearer to 0.4."""
    states = []
    monkeypatch.setattr(textual_inversion, "State", lambda *given: states.append(State(*given)) or states[-1])
    run = Run(fast(), tiny, (Concept("red church"),), (), 0)
    latents, table = run.noise(4), tiny.part("text_encoder").get_input_embeddings()
    textual_inversion.invert(run, latents, "a photo of {}", "red church", "inversion-0", 1, 1e-3, 4, 0.1, length)

    names = table.weight[list(tiny.tokens("red church").ids[1:3])].detach()
    start = torch.cat([names, torch.randn(4, 32, generator=generator(0, "inversion-0"))[2:]]).requires_grad_()
    rng = generator(0, "inversion-0", 0)
    chosen, t = torch.randint(4, (1,), generator=rng), torch.randint(1000, (1,), generator=rng)
    noise = torch.randn(1, *tiny.latent_shape, generator=rng)
    alpha, sigma = tiny.levels(t)
    hook = table.register_forward_hook(lambda module, given, out: torch.cat([out[:, :4], start[None], out[:, 8:]], 1))
    try:
        eps = tiny.eps(alpha * latents[chosen] + sigma * noise, t, tiny.encode(["a photo of a a a a"]))
    finally:
        hook.remove()
    (g,) = torch.autograd.grad((eps - noise).square().mean(), start)
    wanted = start.detach() * (1 - 1e-3 * 0.1) - 1e-3 * g / (g.abs() + 1e-8)
    if length:
        norms = wanted.norm(dim=1, keepdim=True)
        wanted = wanted / norms * (0.9 * norms + 0.1 * length)
    torch.testing.assert_close(states[0].tensors["vectors"].detach(), wanted, atol=2e-5, rtol=1e-5)


def test_on_sdxl_the_vectors_are_of_both_text_encoders(tiny_xl):
    run = Run(fast(), tiny_xl, (Concept("church"),), (), 0)
    found = invert(run, run.noise(2), "a photo of {}", "church", "inversion-0", 2, 1e-1, 4, 0.1, 0.0)
    plain, (first, second) = tiny_xl.encode(["a photo of a a a a"]), tiny_xl.family.text_encoders()
    widths = [one.config.hidden_size for one in (first, second)]
    for own, other in zip(found.context.tokens.split(widths, 2), plain.tokens.split(widths, 2), strict=True):
        assert float((own - other)[:, 4:].abs().max()) > 1e-2
    assert not torch.allclose(found.context.pooled, plain.pooled, atol=1e-2)


def test_the_name_is_found_in_a_prompt_however_it_is_written(tiny):
    method = fast(inversion_steps=1)
    run = Run(method, tiny, (), (), 0)
    for text, first in (("a red CHURCH by a house", 3), ("church, a church", 1)):
        words = method._concept(run, 0, Concept("church", prompts=(text,)))[2].nonzero().flatten().tolist()
        assert words == list(range(first, first + 4))


def test_inversion_changes_the_edit(tiny):
    assert fast(inversion_steps=2)(tiny, ["church"]) != fast()(tiny, ["church"])
    assert fast(inversion_steps=2)(tiny, ["church"]) != fast(inversion_steps=2, inversion_length=0.0)(tiny, ["church"])


def test_seed_presets_and_bad_input(tiny, tmp_path):
    assert fast()(tiny, ["church"]) == fast()(tiny, ["church"])
    assert fast()(tiny, ["church"]) != fast()(tiny, ["church"], seed=1)
    assert fast()(tiny, ["church", "dog"]) != fast()(tiny, ["church"])
    assert (FMN().steps, FMN().lr, FMN().params, FMN().norm) == (35, 2e-6, "full", "joint")
    code = FMN.preset("repo")
    assert (code.inversion_steps, code.tokens, code.inversion_lr, code.pooler) == (500, 4, 1e-3, True)
    assert (code.inversion_decay, code.inversion_length, code.gradient_checkpointing) == (0.1, 0.4, True)
    assert not FMN.preset("mini").gradient_checkpointing
    with pytest.raises(BadInput, match="is not in the prompt"):
        fast()(tiny, [Concept("church", prompts=("a house",))])
    with pytest.raises(BadInput, match="is not in the prompt"):
        fast(inversion_steps=1)(tiny, [Concept("church", prompts=("a churchyard",))])
    with pytest.raises(BadInput, match="for one concept"):
        fast(folder=str(tmp_path))(tiny, ["church", "dog"])
    with pytest.raises(BadInput, match="no images"):
        fast(folder=str(tmp_path))(tiny, ["church"])
    for fields, message in [
        ({"images": 0}, "nothing to train on"),
        ({"inversion_length": -1.0}, "inversion_length must be from 0 to 1e\\+09, got -1.0"),
        ({"image_batch": 0}, "image_batch must be from 1 to 4096, got 0"),
    ]:
        with pytest.raises(BadInput, match=message):
            fast(**fields)


def test_gradient_checkpointing_with_fused_attention(tiny, monkeypatch):
    """At 64×64 latents attention stays the fused one; layers that run again must record as they did the first time."""
    monkeypatch.setattr("efface.models.students.AttnProcessor", AttnProcessor2_0)
    plain, spare = (fast(optimizer="sgd", lr=1e-2, gradient_checkpointing=g)(tiny, ["church"]) for g in (False, True))
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-6, rtol=1e-3)
