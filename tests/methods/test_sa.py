import copy
import hashlib

import pytest
import torch
from diffusers import DDIMScheduler

from efface.concept import Concept
from efface.errors import BadFile, BadInput
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import Run
from efface.methods.sa import SA, _moved
from efface.models.model import Model
from efface.training.loop import generator
from efface.util.files import save_safetensors

CHURCH = Concept("church", anchor="house")
DOG, CAR = Concept("dog"), Concept("car")


def fast(**fields):
    return SA(**{**SA.QUICK, "steps": 3, "lr": 1e-3, "weight_decay": 0.0, "params": "x", **fields})


def moved(edit):
    return float(torch.stack([d.square().sum() for d in edit.delta.values()]).sum().sqrt())


def prepared(method, run):
    """Return what the objective computes once, by stage, and its loss."""
    made = {}
    once = run.once
    run.once = lambda stage, make: made.setdefault(stage, once(stage, make))
    loss = method.objective(run)
    return made, loss


def latents(made, stage):
    return torch.cat([value["latents"] for name, value in made.items() if name.startswith(f"{stage}-")])


def at(model, delta):
    """Return the model with weights moved by a delta, and these weights, which have gradients."""
    old = model.weights("")
    student = model.edited({name: old[name].detach() + d for name, d in delta.items()})
    return student, {name: student.weights("")[name].requires_grad_() for name in delta}


# --- the loss ---
TEXTS = ("a photo of church", "a church")


def by_hand(model, moved_model, weights, made, draws, method):
    """Return L(surrogates, forgotten) + replay L(replay) + λ Σ F (θ − θ*)², from the seed of a step."""
    named = dict(moved_model.weights(""))

    first, second, which = (torch.randint(n, (method.batch,), generator=draws) for n in (3, 3, len(TEXTS)))

    def eps_loss(clean, texts, chosen, row):
        t = torch.randint(1000, (method.batch,), generator=draws)
        noise = torch.randn(method.batch, *model.latent_shape, generator=draws)
        alpha, sigma = model.levels(t)
        with torch.no_grad():
            context = model.encode([texts[i] for i in row.tolist()])
        out = moved_model.eps(alpha * clean[chosen] + sigma * noise, t, context)
        return ((out - noise) ** 2).mean()

    forget = eps_loss(latents(made, "surrogates"), TEXTS, first, which)
    replay = eps_loss(latents(made, "replay"), ["a photo of dog", "a photo of car"], second, second % 2)
    start = model.weights("")
    penalty = sum((made["fisher"][name] * (named[name] - start[name]) ** 2).sum() for name in weights)
    return forget + method.replay * replay + method.penalty * penalty


HAND = {"batch": 3, "images": 3, "replay_images": 3, "forgotten": ("a photo of {}", "a {}"), "surrogate": "a house"}


@pytest.mark.parametrize("fields", [{}, {"replay": 0.0}, {"penalty": 0.0}], ids=["all", "no replay", "no penalty"])
def test_the_loss_and_a_step_by_hand(tiny, fields):
    """The third step, when the student is away from the base: the loss, and the step of plain sgd along its slope."""
    lr = 2e-2
    options = {**HAND, "optimizer": "sgd", "lr": lr, "penalty": 300.0, "replay": 0.7, **fields}
    two, three = (fast(steps=steps, **options)(tiny, [CHURCH], [DOG, CAR]) for steps in (2, 3))
    method = fast(**options)
    made, _ = prepared(fast(**options | {"penalty": 300.0}), Run(method, tiny, (CHURCH,), (DOG, CAR), 0))
    student, weights = at(tiny, two.delta)
    value = by_hand(tiny, student, weights, made, generator(0, 2, 0), method)
    assert three.meta["training"]["loss"][2] == pytest.approx(float(value.detach()), rel=1e-3)
    slopes = dict(zip(weights, torch.autograd.grad(value, list(weights.values()), allow_unused=True), strict=True))
    size = max(float(g.norm()) for g in slopes.values() if g is not None)
    for name, g in slopes.items():
        step, expected = three.delta[name] - two.delta[name], -lr * (torch.zeros(()) if g is None else g)
        torch.testing.assert_close(step, expected.expand_as(step), atol=1e-3 * lr * size, rtol=0.05)


def test_the_penalty_is_seen_by_the_hand_test(tiny):
    """At the third step the penalty is a good part of the loss and of its slope, so the test above sees it."""
    options = {**HAND, "optimizer": "sgd", "lr": 2e-2, "replay": 0.7}
    losses = [fast(**options, penalty=p)(tiny, [CHURCH], [DOG, CAR]).meta["training"]["loss"] for p in (0.0, 300.0)]
    assert losses[1][0] == pytest.approx(losses[0][0])
    assert losses[1][2] > 1.1 * losses[0][2]


def test_the_forgotten_prompt_fits_the_surrogates_better(tiny):
    """Which is the claim: trained on images of the anchor, it predicts their noise under the forgotten prompt."""
    method = fast(steps=20, lr=3e-3, batch=4, images=4, params="full", penalty=1.0)
    edit = method(tiny, [CHURCH])
    made, _ = prepared(method, Run(method, tiny, (CHURCH,), (), 0))
    draws = torch.Generator().manual_seed(7)
    z = latents(made, "surrogates").repeat(8, 1, 1, 1)
    noise, t = torch.randn(z.shape, generator=draws), torch.randint(1000, (len(z),), generator=draws)
    alpha, sigma = tiny.levels(t)
    with edit.applied(tiny) as edited, torch.no_grad():
        c = tiny.encode(["a photo of church"])
        z_t = alpha * z + sigma * noise
        before, after = (float((m.eps(z_t, t, c) - noise).square().mean()) for m in (tiny, edited))
    assert after < 0.9 * before


def test_a_large_penalty_keeps_weights_near_their_start(tiny):
    """Adam's first step does not see the penalty, so a run with λ → ∞ stays within a few steps of its start."""
    steps = 15
    one = moved(fast(steps=1, penalty=0.0)(tiny, [CHURCH]))
    free, held = (moved(fast(steps=steps, penalty=w)(tiny, [CHURCH])) for w in (0.0, 1e9))
    assert held < 0.7 * free
    assert held < 4 * one


def test_distances_are_those_of_the_float32_masters():
    """A weight in bfloat16 does not show a move of 1e-5 from 1; its master does, and the weight gets the slope."""
    start = torch.ones(3, dtype=torch.bfloat16)
    weight = start.clone().requires_grad_()
    master = torch.nn.Parameter(start.float() + 1e-5)
    value = _moved(torch.full((3,), 2.0), weight, master, start)
    assert float(value.detach()) == pytest.approx(6e-10, rel=1e-2)
    value.backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 4e-5, dtype=torch.bfloat16), atol=0, rtol=1e-2)
    assert master.grad is None


def test_the_penalty_of_a_model_in_half_precision(folder):
    half = Model.load(folder, dtype=torch.bfloat16)
    run = Run(method := fast(penalty=1e6), half, (CHURCH,), (), 0)
    made, loss = prepared(method, run)
    assert all(f.dtype == torch.float32 for f in made["fisher"].values())
    value = float(loss(0).detach())
    with torch.no_grad():
        for master in run.masters.values():
            master += 1e-6
    run.rng = generator(0, "again")
    state = run.rng.get_state()
    expected = 1e6 * sum(float((f * 1e-12).sum()) for f in made["fisher"].values())
    with_move = float(loss(0).detach())
    for name, master in run.masters.items():
        master.data.copy_(half.weights("")[name].float())
    run.rng.set_state(state)
    assert with_move - float(loss(0).detach()) == pytest.approx(expected, rel=0.1)
    assert value > 0
    assert expected > 1e-3


# --- Fisher information ---
def short(tiny, total):
    """Return the model with a schedule of few timesteps."""
    pipe = copy.copy(tiny.pipe)
    pipe.scheduler = DDIMScheduler(num_train_timesteps=total, beta_start=0.01, beta_end=0.3)
    return Model(pipe, name="short")


@pytest.mark.parametrize("times", [2, 5])
def test_fisher_by_hand(tiny, times):
    """Of two images, with all five timesteps the squared sum of gradients itself, with two its estimate."""
    model, total = short(tiny, 5), 5
    method = fast(fisher_images=2, fisher_times=times, params="x-strict")
    run = Run(method, model, (CHURCH,), (), 0)
    clean, contexts = run.noise(2), run.contexts(["dog", "car"])
    state = run.rng.get_state()
    fisher = method._fisher(run, clean, contexts)
    draws = torch.Generator()
    draws.set_state(state)
    student, weights = at(model, {name: torch.zeros_like(f) for name, f in fisher.items()})
    expected = {name: torch.zeros_like(f) for name, f in fisher.items()}
    for i in range(2):
        rows = []
        for t in torch.randperm(total, generator=draws)[:times].split(1):
            noise = torch.randn(1, *model.latent_shape, generator=draws)
            alpha, sigma = model.levels(t)
            out = student.eps(alpha * clean[i : i + 1] + sigma * noise, t, contexts[i : i + 1])
            rows.append(torch.autograd.grad(((out - noise) ** 2).mean(), list(weights.values())))
        for name, slopes in zip(weights, zip(*rows, strict=True), strict=True):
            each = torch.stack(slopes)
            own = each.square().sum(0)
            others = each.sum(0).square() - own
            expected[name] += (total / times * own + total * (total - 1) / (times * (times - 1)) * others) / 2
    if times == 2:
        assert any((value < 0).any() for value in expected.values())
    for name, value in fisher.items():
        size = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name].clamp(min=0), atol=1e-3 * size, rtol=1e-2)
        assert value.dtype == torch.float32


def test_a_file_takes_the_place_of_the_estimate(tiny, tmp_path):
    made, _ = prepared(fast(penalty=1e3), Run(fast(), tiny, (CHURCH,), (), 0))
    path = tmp_path / "fisher.safetensors"
    save_safetensors(path, {name: 2 * f for name, f in made["fisher"].items()})
    given = fast(penalty=0.5e3, fisher=str(path))(tiny, [CHURCH])
    estimated = fast(penalty=1e3)(tiny, [CHURCH])
    for name, delta in estimated.delta.items():
        torch.testing.assert_close(given.delta[name], delta, atol=1e-6, rtol=1e-3)
    none = fast(penalty=0.0)(tiny, [CHURCH])
    assert any(not torch.allclose(given.delta[name], delta, atol=1e-5) for name, delta in none.delta.items())


def test_what_cannot_work_is_refused_before_images_are_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "sample", lambda *_, **__: pytest.fail("made images first"))
    with pytest.raises(BadFile, match="does not exist"):
        fast(fisher=str(tmp_path / "none.safetensors"))(tiny, [CHURCH])
    save_safetensors(tmp_path / "other.safetensors", {"unet.conv_in.bias": torch.ones(32)})
    with pytest.raises(BadInput, match=r"lacks (\d+) of \1 trained weights"):
        fast(fisher=str(tmp_path / "other.safetensors"))(tiny, [CHURCH])
    with pytest.raises(BadInput, match="at most this model's 1000 timesteps, got 1001"):
        fast(fisher_times=1001)(tiny, [CHURCH])


# --- prompts ---
def test_preserved_concepts_are_replayed(tiny):
    assert fast()(tiny, [CHURCH], ["dog"]) != fast()(tiny, [CHURCH], ["car"])
    assert fast(contents=("dog",))(tiny, [CHURCH]) == fast()(tiny, [CHURCH], ["dog"])


def test_the_prompts_of_a_file_are_replayed_in_place_of_all_others(tiny, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red dog\n\n a blue # tree \n")
    own = fast(replay_file=str(path))
    assert own._replayed([CHURCH]) == ["a red dog", "a blue # tree"]
    edit = own(tiny, [CHURCH], ["dog"])
    assert edit == own(tiny, [CHURCH]) != fast()(tiny, [CHURCH])
    digest = hashlib.sha256(b"a red dog\na blue # tree").hexdigest()
    assert edit.meta["replay_file"] == {"prompts": 2, "sha256": digest}
    path.write_text(" \n")
    with pytest.raises(BadInput, match="has no prompts"):
        fast(replay_file=str(path))
    with pytest.raises(BadFile, match="cannot read"):
        fast(replay_file=str(tmp_path / "none.txt"))


def test_prompts_to_forget_and_of_surrogates():
    assert fast().prompts(CHURCH) == [("a photo of church", "a photo of house")]
    own = Concept("church", prompts=("a church", "god"), family="building")
    assert fast().prompts(own) == [("a church", "a building"), ("god", "a photo of building")]
    assert fast().prompts(Concept("church")) == [("a photo of church", "")]
    plain = Concept("neon", kind="style", family="style", prompts=("a church by neon", "art"))
    assert fast().prompts(plain) == [("a church by neon", "a painting"), ("art", "a painting")]
    neon = Concept("neon", kind="style", anchor="sketch")
    assert fast().prompts(neon) == [("a painting in the style of neon", "a painting in the style of sketch")]
    assert SA.preset("repo").prompts(own) == [("church", "building")]
    told = fast(forgotten=("a {}", "god"), surrogate="a dog")
    assert told.prompts(own) == [("a church", "a dog"), ("god", "a dog")]


def test_nudity_forgets_the_terms_of_its_code():
    terms = [forgotten for forgotten, _ in SA.preset("nudity").prompts(Concept("nudity"))]
    assert terms == ["sexual", "nudity", "naked", "erotic"]
    assert {surrogate for _, surrogate in SA.preset("nudity").prompts(Concept("nudity"))} == {
        "a person wearing clothes"
    }


def test_surrogates_and_replay_are_images_of_their_prompts(tiny):
    run = Run(method := fast(images=3, replay_images=3), tiny, (CHURCH,), (DOG, CAR), 0)
    made, _ = prepared(method, run)
    again = Run(method, tiny, (CHURCH,), (), 0)
    draw = (3, method.image_steps, method.guidance)
    preserved = [text for c in (DOG, CAR) for text in training_prompts(c)]
    expected = generated_latents(again, "surrogates", ["a photo of house"], *draw)
    torch.testing.assert_close(latents(made, "surrogates"), expected)
    torch.testing.assert_close(latents(made, "replay"), generated_latents(again, "replay", preserved, *draw))


def test_a_drawn_prompt_belongs_to_the_surrogate(tiny, monkeypatch):
    """Prompts that share surrogate images are drawn for each of them; the others keep their own."""
    concept = Concept("church", prompts=("god", "a church", "a wolf"), anchor="house")
    method = fast(batch=64, images=3, penalty=0.0)
    run = Run(method, tiny, (concept,), (), 0)
    seen = []
    encode = run.contexts

    def contexts(texts):
        found = encode(texts)
        return found.with_tokens(torch.arange(len(found)).float().view(-1, 1, 1).expand_as(found.tokens))

    run.contexts = contexts
    monkeypatch.setattr(type(tiny.family), "predict", lambda self, x, t, c: seen.append(c.tokens[:, 0, 0]) or 0 * x)
    _, loss = prepared(method, run)
    run.rng = generator(0, 0)
    loss(0)
    chosen = torch.randint(3, (64,), generator=generator(0, 0))
    rows = seen[-2].long()
    assert set(rows[chosen == 1].tolist()) == {1}
    for other in (0, 2):
        assert set(rows[chosen == other].tolist()) == {0, 2}


def test_seed_presets_and_bad_input(tiny):
    assert fast()(tiny, [CHURCH]) == fast()(tiny, [CHURCH])
    assert fast()(tiny, [CHURCH]) != fast()(tiny, [CHURCH], seed=1)
    assert SA.preset("paper") == SA()
    assert (SA().penalty, SA().batch, SA().params) == (50.0, 16, "full")
    assert SA().lr == pytest.approx(1e-5 * 4 * 4)
    assert SA().gradient_checkpointing
    assert not SA.preset("mini").gradient_checkpointing
    for fields in (
        {"fisher_images": 0},
        {"fisher_times": 1},
        {"penalty": -1.0},
        {"replay": float("nan")},
        {"images": 0},
        {"replay_images": 0},
        {"image_batch": 0},
    ):
        (name,) = fields
        with pytest.raises(BadInput, match=f"{name} must be from [012] to"):
            fast(**fields)
