import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.ca import CA
from efface.methods.finetune.parameters import detach_start

CHURCH = Concept("church", anchor="house")


def fast(**fields):
    return CA(**{"steps": 3, "batch": 2, "lr": 1e-3, "images": 4, "image_steps": 2, **fields})


def test_an_anchor_equal_to_the_target_moves_nothing(tiny):
    still = fast(prior=0.0, weight_decay=0.0)(tiny, [Concept("church", anchor="church")])
    assert not any(delta.any() for delta in still.delta.values())
    assert still.meta["training"]["loss"] == [0.0] * 3
    assert any(delta.any() for delta in fast(prior=0.0, weight_decay=0.0)(tiny, [CHURCH]).delta.values())


def test_the_concept_moves_to_the_anchor(tiny):
    z, t = torch.randn(8, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) * 120
    edit = fast(steps=15, prior=0.0, batch=4, lr=1e-4, templates=("a {}",))(tiny, [CHURCH])
    with edit.applied(tiny) as edited, torch.no_grad():
        c_star, c = tiny.encode(["a church"]), tiny.encode(["a house"])
        before, after = ((m.eps(z, t, c_star) - tiny.eps(z, t, c)).square().mean() for m in (tiny, edited))
    assert after < 0.8 * before


def test_prior_is_the_plain_diffusion_loss(tiny):
    """At the first step the two targets differ by the prior's weight times one and the same loss."""
    losses = [fast(steps=1, prior=w)(tiny, [CHURCH]).meta["training"]["loss"][0] for w in (0.0, 1.0, 2.0)]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    noise = fast(steps=1, prior=0.0, target="noise")(tiny, [CHURCH]).meta["training"]["loss"][0]
    assert noise == pytest.approx(losses[1] - losses[0], rel=0.2)  # the same loss under the target's prompt


@pytest.mark.parametrize("detach", [True, False])
def test_the_start_token_gets_no_gradient(tiny, detach):
    """Keys and values have no bias, so a context that is zero but for its start has gradient through it alone."""
    model = tiny.edited({name: p.data.clone() for name, p in tiny.weights().items() if ".attn2.to_" in name})
    if detach:
        detach_start(model)
    context = tiny.encode(["church"])
    context.tokens[:, 1:] = 0
    weights = [model.weights()[name].requires_grad_() for name in model.text_weights()]
    model.eps(torch.randn(1, *tiny.latent_shape), torch.tensor([500]), context).square().sum().backward()
    assert all(bool(w.grad.any()) != detach for w in weights)


def test_embedding_trains_the_rows_of_the_name_only(tiny):
    edit = fast(params="embedding", lr=1.0)(tiny, [CHURCH])
    (name, delta) = next(iter(edit.delta.items()))
    assert name.startswith("text_encoder.")
    assert len(edit.delta) == 1
    tokens = tiny.tokens("church")
    assert set(delta.abs().sum(1).nonzero().flatten().tolist()) == set(tokens.ids[1 : tokens.eos])
    with edit.applied(tiny) as edited:
        assert not torch.equal(edited.encode(["a church"]).tokens, tiny.encode(["a church"]).tokens)
        assert torch.equal(edited.encode(["a dog"]).tokens, tiny.encode(["a dog"]).tokens)


def test_prompts():
    ca = CA(templates=("a {}",), contents=("tree",))
    assert ca.prompts(CHURCH, ()) == [("a house", "a church")]
    assert ca.prompts(Concept("church", family="building"), ()) == [("a building", "a church")]
    assert ca.prompts(Concept("church"), ()) == [("", "a church")]
    neon = Concept("neon", kind="style")
    assert ca.prompts(neon, ()) == [("a tree", "a tree in the style of neon")]
    assert ca.prompts(neon, [CHURCH]) == [("a church", "a church in the style of neon")]
    sketch = Concept("neon", kind="style", anchor="sketch")
    assert ca.prompts(sketch, ())[0][0] == "a tree in the style of sketch"


def test_seed_presets_and_bad_input(tiny):
    assert fast()(tiny, [CHURCH]) == fast()(tiny, [CHURCH])
    assert fast()(tiny, [CHURCH]) != fast()(tiny, [CHURCH], seed=1)
    assert CA.preset("paper") == CA()
    assert (CA().steps, CA().batch, CA().lr) == (100, 8, pytest.approx(2e-6 * 8))
    with pytest.raises(BadInput, match="images must be at least 1"):
        fast(images=0)(tiny, [CHURCH])
