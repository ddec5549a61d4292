import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.method import Run
from efface.methods.finetune.textual_inversion import invert
from efface.methods.fmn import FMN
from efface.models.attention import recorded


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


def test_the_loss_is_the_frobenius_norm_at_the_words(tiny):
    method = fast(batch=1, images=1)
    run = Run(method, tiny, (Concept("church"),), (), 0)
    loss = method.objective(run)
    latents, c, _ = method._concept(run, 0, Concept("church"))
    state = run.rng.get_state()
    value = loss(0)
    run.rng.set_state(state)
    _, t, noise = run.pick(1, 1), run.times(1), run.noise(1)
    alpha, sigma = tiny.levels(t)
    with recorded(tiny) as maps, torch.no_grad():
        tiny.eps(alpha * latents + sigma * noise, t, c)
    norms = [float(m[..., 4].square().sum().sqrt()) for layer in maps.values() for m in layer]
    assert value.requires_grad
    assert float(value.detach()) == pytest.approx(sum(norms) / len(norms), rel=1e-4)


def test_pooler_adds_the_end_and_the_padding(tiny):
    masks = []
    for pooler in (False, True):
        method = fast(pooler=pooler)
        masks.append(method._concept(Run(method, tiny, (Concept("church"),), (), 0), 0, Concept("church"))[2])
    assert masks[0].nonzero().flatten().tolist() == [4]
    assert masks[1].nonzero().flatten().tolist() == [4, *range(5, 16)]


def test_inversion_learns_vectors_in_the_words_place(tiny):
    run = Run(fast(), tiny, (Concept("red church"),), (), 0)
    latents = run.noise(4)
    found = invert(run, latents, "a photo of {} by a house", "red church", "inversion-0", 3, 1e-2, 4)
    assert found.at == [4, 5, 6, 7]
    assert found.end == 11
    plain = tiny.encode(["a photo of a a a a by a house"]).tokens
    assert torch.allclose(found.context.tokens[:, :4], plain[:, :4], atol=1e-5)  # a causal encoder
    assert not torch.allclose(found.context.tokens[:, 4:], plain[:, 4:], atol=1e-2)
    assert torch.equal(tiny.encode(["a photo of a a a a by a house"]).tokens, plain)  # the hook is gone
    assert all(p.grad is None for p in tiny.weights("").values())


def test_inversion_changes_the_edit(tiny):
    assert fast(inversion_steps=2)(tiny, ["church"]) != fast()(tiny, ["church"])


def test_seed_presets_and_bad_input(tiny, tmp_path):
    assert fast()(tiny, ["church"]) == fast()(tiny, ["church"])
    assert fast()(tiny, ["church"]) != fast()(tiny, ["church"], seed=1)
    assert fast()(tiny, ["church", "dog"]) != fast()(tiny, ["church"])
    assert (FMN().steps, FMN().lr, FMN().params) == (35, 2e-6, "full")
    with pytest.raises(BadInput, match="is not in the prompt"):
        fast()(tiny, [Concept("church", prompts=("a house",))])
    with pytest.raises(BadInput, match="for one concept"):
        fast(folder=str(tmp_path))(tiny, ["church", "dog"])
    with pytest.raises(BadInput, match="no images"):
        fast(folder=str(tmp_path))(tiny, ["church"])


def test_gradient_checkpointing_with_fused_attention(tiny, monkeypatch):
    """At 64×64 latents attention stays the fused one; layers that run again must record as they did the first time."""
    monkeypatch.setattr("efface.methods.finetune.method.AttnProcessor", AttnProcessor2_0)
    plain, spare = (fast(optimizer="sgd", lr=1e-2, gradient_checkpointing=g)(tiny, ["church"]) for g in (False, True))
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-6, rtol=1e-3)
