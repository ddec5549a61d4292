import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.ca import CA
from efface.methods.finetune.images import generated_latents
from efface.methods.finetune.method import Run
from efface.methods.finetune.parameters import detach_start
from efface.methods.finetune.resize import WORDS, resized
from efface.training.loop import generator

CHURCH = Concept("church", anchor="house")


def fast(**fields):
    return CA(**{"steps": 3, "batch": 2, "lr": 1e-3, "images": 4, "image_steps": 2, **fields})


# --- the loss ---
def by_hand(model, student, method, clean, draws, teacher=None):
    """Return ‖ε(x_t, c*) − sg ε(x_t, c)‖² + prior ‖ε(x_t, c) − ε‖² from the seed of a step; prompts "a …"."""

    def drawn():
        chosen = torch.randint(len(clean), (method.batch,), generator=draws)
        t = torch.randint(1000, (method.batch,), generator=draws)
        return clean[chosen], t, torch.randn(method.batch, *model.latent_shape, generator=draws)

    def x_t(x_0, t, noise):
        alpha, sigma = model.levels(t)
        return alpha * x_0 + sigma * noise

    with torch.no_grad():
        about, anchor = model.encode(["a church"]), model.encode(["a house"])
    x_0, t, noise = drawn()
    mask = torch.ones(method.batch, 1, *model.latent_shape[1:])
    if method.augment:
        x_0, mask, words = resized(model, x_0, draws)
        with torch.no_grad():
            about = model.encode([WORDS[word] + "a church" for word in words.tolist()])
    x = x_t(x_0, t, noise)
    goal = noise if method.target == "noise" else (teacher or student).eps(x, t, anchor).detach()
    error = (student.eps(x, t, about) - goal) ** 2 * mask
    value = (error.sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3))).clamp(min=1)).mean()
    if method.prior:
        x_0, t, noise = drawn()
        value = value + method.prior * ((student.eps(x_t(x_0, t, noise), t, anchor) - noise) ** 2).mean()
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"detach_start": False},
        {"target": "noise"},
        {"prior": 0.7},
        {"augment": True, "prior": 0.3},
        {"away": True},
    ],
    ids=["paper", "start", "noise", "prior", "augment", "away"],
)
def test_the_loss_and_a_step_by_hand(tiny, fields):
    """The fourth step, when the student is away from the base: the loss, and the step of plain sgd along its slope."""
    lr = 3.0
    options = {"optimizer": "sgd", "lr": lr, "weight_decay": 0.0, "templates": ("a {}",), "batch": 6, **fields}
    three, four = (fast(steps=steps, **options)(tiny, [CHURCH]) for steps in (3, 4))
    method = fast(**options)
    run = Run(method, tiny, (CHURCH,), (), 0)
    away = ["church"] if method.away else ()
    clean = generated_latents(run, "anchors", ["a house"], 4, 2, method.guidance, negative=away)
    student = tiny.edited({name: tiny.weights("")[name].detach() + d for name, d in three.delta.items()})
    weights = {name: student.weights("")[name].requires_grad_() for name in three.delta}
    if method.detach_start:
        detach_start(student)
    value = by_hand(tiny, student, method, clean, generator(0, 3, 0))
    assert four.meta["training"]["loss"][3] == pytest.approx(float(value.detach()), rel=1e-3)
    slopes = torch.autograd.grad(value, list(weights.values()))
    size = max(float(g.norm()) for g in slopes)
    for name, g in zip(weights, slopes, strict=True):
        torch.testing.assert_close(four.delta[name] - three.delta[name], -lr * g, atol=1e-3 * lr * size, rtol=0.05)


def test_the_teacher_is_the_student_itself(tiny):
    """A student far from the base: its own prediction is the goal, and the frozen original's would be another one."""
    method = fast(templates=("a {}",), batch=6)
    run = Run(method, tiny, (CHURCH,), (), 0)
    clean = generated_latents(run, "anchors", ["a house"], 4, 2, method.guidance)
    loss = method.objective(run)
    with torch.no_grad():
        for p in run.weights.values():
            p *= 3
    run.rng = generator(0, 0)
    value = float(loss(0).detach())
    own, frozen = (
        float(by_hand(tiny, run.student, method, clean, generator(0, 0), teacher).detach())
        for teacher in (run.student, tiny)
    )
    assert value == pytest.approx(own, rel=1e-3)
    assert frozen > 1.5 * own


def test_an_anchor_equal_to_the_target_moves_nothing(tiny):
    still = fast(weight_decay=0.0)(tiny, [Concept("church", anchor="church")])
    assert not any(delta.any() for delta in still.delta.values())
    assert still.meta["training"]["loss"] == [0.0] * 3
    assert any(delta.any() for delta in fast(weight_decay=0.0)(tiny, [CHURCH]).delta.values())


def test_the_concept_moves_to_the_anchor(tiny):
    z, t = torch.randn(8, *tiny.latent_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) * 120
    edit = fast(steps=15, batch=4, lr=1e-4, templates=("a {}",))(tiny, [CHURCH])
    with edit.applied(tiny) as edited, torch.no_grad():
        c_star, c = tiny.encode(["a church"]), tiny.encode(["a house"])
        before, after = ((m.eps(z, t, c_star) - tiny.eps(z, t, c)).square().mean() for m in (tiny, edited))
    assert after < 0.8 * before


def test_prior_is_a_plain_diffusion_loss_of_its_own_draw(tiny):
    """At the first step losses differ by the prior's weight times one and the same loss."""
    losses = [fast(steps=1, prior=w)(tiny, [CHURCH]).meta["training"]["loss"][0] for w in (0.0, 1.0, 2.0)]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    noise = fast(steps=1, target="noise", batch=16)(tiny, [CHURCH]).meta["training"]["loss"][0]
    assert noise == pytest.approx(losses[1] - losses[0], rel=0.5)  # the same kind of loss


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


def test_on_sdxl_the_embeddings_of_both_text_encoders_are_trained(tiny_xl):
    edit = fast(params="embedding", lr=1.0)(tiny_xl, [CHURCH])
    assert [name.partition(".")[0] for name in edit.delta] == ["text_encoder", "text_encoder_2"]
    assert all(float(delta.abs().max()) > 0 for delta in edit.delta.values())


@pytest.mark.parametrize("params", ["x", "x-strict"])
def test_joint_attention_has_no_start_token_to_detach(tiny_each, params):
    with_start, without = (fast(detach_start=one, params=params)(tiny_each, [CHURCH]) for one in (True, False))
    assert with_start == without


def test_the_anchor_of_an_embedding_is_read_by_the_student(tiny):
    """An anchor that shares the name's word moves with it, so that a prompt equal to its anchor has no loss."""
    same = fast(params="embedding", lr=1.0, templates=("a {}",))(tiny, [Concept("church", anchor="church")])
    assert same.meta["training"]["loss"] == [0.0] * 3
    red = Concept("red church", anchor="church")
    run = Run(method := fast(params="embedding", templates=("a {}",)), tiny, (red,), (), 0)
    c = method._contexts(run, ["a church"])
    before = c(torch.tensor([0])).tokens.detach().clone()
    with torch.no_grad():
        next(iter(run.weights.values())).add_(1.0 * torch.randn(1, 32))
    assert not torch.allclose(c(torch.tensor([0])).tokens, before)


def test_token_embeddings_can_be_trained_beside_other_weights(tiny):
    """Every word of the prompts moves, by their own rate and without weight decay; the rest by lr."""
    edit = fast(embedding_lr=0.1, lr=1e-5, weight_decay=5.0, templates=("a {}",))(tiny, [CHURCH])
    (name,) = (name for name in edit.delta if name.startswith("text_encoder."))
    assert len(edit.delta) > 1
    delta, tokens = edit.delta[name], tiny.tokens("a church")
    moved = set(delta.abs().sum(1).nonzero().flatten().tolist())
    assert set(tokens.ids[1 : tokens.eos]) <= moved
    words = {i for text in ("a church", f"a {CHURCH.anchor or CHURCH.family}") for i in tiny.tokens(text).ids}
    assert moved <= words
    assert delta.abs().max() > 0.05
    assert max(float(d.abs().max()) for key, d in edit.delta.items() if key != name) < 1e-2
    with pytest.raises(BadInput, match="leave embedding_lr at 0"):
        fast(params="embedding", embedding_lr=0.1)


# --- images and prompts ---
def test_images_are_of_the_anchors_prompts(tiny):
    """Away from the concept they are made with its name as negative prompt, each of its own."""
    concepts = (CHURCH, Concept("dog", anchor="car"))
    for away in (False, True):
        run = Run(method := fast(away=away, templates=("a {}", "{}")), tiny, concepts, (), 0)
        made = method._images(run, ["a house", "house", "a car", "car"])
        negative = ["church", "church", "dog", "dog"] if away else ()
        draw = (4, method.image_steps, method.guidance)
        expected = generated_latents(run, "anchors", ["a house", "house", "a car", "car"], *draw, negative=negative)
        assert torch.equal(made, expected)


def test_prompts():
    ca = CA(templates=("a {}",), contents=("tree",))
    assert ca.prompts(CHURCH, ()) == [("a house", "a church")]
    assert ca.prompts(Concept("church", family="building"), ()) == [("a building", "a church")]
    assert ca.prompts(Concept("church"), ()) == [("", "a church")]
    neon = Concept("neon", kind="style")
    forms = ["a tree, in the style of neon", "in neon's style, a tree", "in neon's style, a tree"]
    assert ca.prompts(neon, ()) == [("a tree", text) for text in forms]
    assert {anchor for anchor, _ in ca.prompts(neon, [CHURCH])} == {"a church"}
    sketch = Concept("neon", kind="style", anchor="sketch")
    assert [anchor for anchor, _ in ca.prompts(sketch, ())] == [text.replace("neon", "sketch") for text in forms]
    assert CA.preset("mini", contents=("tree",)).prompts(neon, ())[0][1] == "a picture of a tree in the style of neon"
    for forms in ((), ("{0} like neon",), ("{1}",)):
        with pytest.raises(BadInput, match="forms are texts"):
            CA(forms=forms)


def test_presets_are_the_papers_effective_rates():
    assert CA.preset("paper") == CA()
    assert (CA().steps, CA().batch, CA().lr, CA().prior) == (100, 8, pytest.approx(2e-6 * 4 * 2), 0.0)
    overlap, nudity = CA.preset("overlap"), CA.preset("nudity")
    assert (overlap.lr, overlap.prior) == (pytest.approx(2e-6 * 4 * 2 * 2), 0.25)
    assert (nudity.lr, nudity.batch, nudity.steps) == (pytest.approx(4e-6 * 4 * 2), 4, 800)
    assert nudity.away
    assert "memorization" not in CA.PRESETS


def test_seed_and_bad_input(tiny):
    assert fast()(tiny, [CHURCH]) == fast()(tiny, [CHURCH])
    assert fast()(tiny, [CHURCH]) != fast()(tiny, [CHURCH], seed=1)
    for fields, message in (
        ({"images": 0}, "images must be from 1 to 1000000, got 0"),
        ({"image_batch": 0}, "image_batch must be from 1 to 4096, got 0"),
        ({"prior": -1.0}, r"prior must be from 0 to 1e\+09, got -1.0"),
        ({"templates": ()}, "at least one text"),
    ):
        with pytest.raises(BadInput, match=message):
            fast(**fields)
