import pytest
import torch
from diffusers.training_utils import EMAModel
from PIL import Image

from efface.concept import Concept, table
from efface.errors import BadInput
from efface.methods import task_vector
from efface.methods.finetune.images import generated_latents, training_prompts
from efface.methods.finetune.method import Run
from efface.methods.task_vector import TaskVector
from efface.models.images import folder_latents, noised
from efface.models.model import Model
from efface.training.loop import generator


def fast(**fields):
    return TaskVector(**{"steps": 2, "batch": 2, "accumulate": 1, "lr": 1e-3, "images": 2, "image_steps": 2, **fields})


@pytest.fixture
def album(tmp_path):
    for i in range(3):
        Image.new("RGB", (40 + i, 30), (80 * i, 10, 200)).save(tmp_path / f"{i}.png")
    return tmp_path


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


@pytest.mark.parametrize("flip", [False, True])
def test_loss_and_step_by_hand(tiny, flip):
    one_step = {"steps": 1, "optimizer": "sgd", "lr": 0.1, "clip": 0.5, "weight_decay": 0.01}
    run, loss = moved(fast(**one_step, flip=flip, batch=8, images=3), tiny, Concept("church"))
    clean = generated_latents(run, "images", ["a photo of church"], 3, 2, 7.5, 4)
    with torch.no_grad():
        mirrored = tiny.encode_images(tiny.decode(clean).flip(-1))
    assert not torch.allclose(mirrored, clean, atol=0.1)

    def by_hand(run, rng):
        chosen, t = torch.randint(3, (8,), generator=rng), torch.randint(1000, (8,), generator=rng)
        noise, side = torch.randn(8, *tiny.latent_shape, generator=rng), torch.randint(2, (8,), generator=rng)
        assert side.any()
        assert not side.all()
        z = torch.where((side * flip).bool()[:, None, None, None], mirrored[chosen], clean[chosen])
        alpha, sigma = tiny.levels(t)
        return (run.student.eps(alpha * z + sigma * noise, t, tiny.encode([""])) - noise).square().mean()

    check_step(run, loss, by_hand)


def test_the_moving_average_is_that_of_the_training_script(tiny, monkeypatch):
    """θ_ft is what diffusers' EMAModel has at its defaults, which grow its decay from 0."""
    steps, move = [], Run._move

    def spy(run):
        steps.append([p.detach().clone().requires_grad_() for p in run.masters.values()])
        move(run)

    monkeypatch.setattr(Run, "_move", spy)
    edit = fast(steps=4, ema=True, alpha=-1.0)(tiny, ["church"])
    old = {name: p.detach() for name, p in tiny.weights().items()}
    script = EMAModel(list(old.values()))
    for weights in steps:
        script.step(weights)
    for (name, start), mean in zip(old.items(), script.shadow_params, strict=True):
        torch.testing.assert_close(edit.delta[name], mean - start, rtol=1e-3, atol=2.4e-7)  # 2 ulp of a weight of 1
    assert fast(steps=4, alpha=-1.0)(tiny, ["church"]) != edit
    assert [round(task_vector.growing_decay(n), 3) for n in (0, 1, 199, 10**6)] == [0, 0.182, 0.957, 1.0]


def test_alpha_scales_one_training(tiny):
    one, minus, half = (fast(alpha=alpha)(tiny, ["church"]) for alpha in (1.0, -1.0, 0.5))
    assert (-minus).id == one.id
    for name, delta in one.delta.items():
        torch.testing.assert_close((0.5 * one).delta[name], half.delta[name])
        assert delta.any()


def test_alpha_zero_is_the_identity(tiny):
    edit = fast(alpha=0.0)(tiny, ["church"])
    with edit.applied(tiny) as edited:
        for name, weight in edited.weights().items():
            assert torch.equal(weight, tiny.weights()[name])


def test_the_step_is_away_from_the_images(tiny):
    """Against the gradient, the loss on the images rises; along it, it falls."""
    method = fast(steps=8, alpha=1.0, lr=3e-4, batch=4)
    edit = method(tiny, ["church"])
    z, t = torch.randn(16, *tiny.latent_shape), torch.arange(16) * 60
    noise = torch.randn_like(z)
    z_t, null = noised(tiny, z, noise, t), tiny.encode([""])
    losses = []
    for alpha in (-1.0, 0.0, 1.0):
        with (alpha * edit).applied(tiny) as edited, torch.no_grad():
            losses.append(float((edited.eps(z_t, t, null) - noise).square().mean()))
    assert losses == sorted(losses)


def test_blocks(tiny):
    edit = fast()(tiny, ["church"])
    pruned = fast(only=("attn2",), without=("up",))(tiny, ["church"])
    assert set(pruned.delta) == {n for n in edit.delta if "attn2" in n and "up_blocks" not in n}
    assert pruned == edit.prune(only=("attn2",), without=("up",))


def test_images_of_a_folder(tiny, album):
    assert folder_latents(tiny, album).shape == (3, *tiny.latent_shape)
    alone = fast(folder=str(album), images=3, real=3)
    both, plain = fast(folder=str(album), images=4, real=2)(tiny, ["church"]), fast(images=4, real=2)(tiny, ["church"])
    assert alone(tiny, ["church"]) == alone(tiny, ["dog"])  # the prompt plays no part
    assert both.meta["images"] == {"real": 2, "generated": 2}
    assert plain.meta["images"] == {"real": 0, "generated": 4}
    run = Run(alone, tiny, (Concept("church"),), (), 0)
    found = fast(folder=str(album), images=4, real=2)._latents(run)[:, 0]
    assert torch.equal(found[:2], folder_latents(tiny, album)[:2])
    assert torch.equal(found[2:], generated_latents(run, "images", ["a photo of church"], 2, 2, 7.5, 4))


def test_too_few_images_are_refused_before_any_is_generated(tiny, album, monkeypatch):
    monkeypatch.setattr(task_vector, "generated_latents", None)
    with pytest.raises(BadInput, match="has 3 of 15 images: add some, or set real to 3"):
        TaskVector(folder=str(album))(tiny, ["church"])


def test_noised_is_the_scheduler_s(tiny):
    clean, noise, t = torch.randn(2, *tiny.latent_shape), torch.randn(2, *tiny.latent_shape), torch.tensor([10, 900])
    torch.testing.assert_close(noised(tiny, clean, noise, t), tiny.part("scheduler").add_noise(clean, noise, t))


def test_prompts_presets_and_seed(tiny):
    assert training_prompts(Concept("neon", kind="style")) == ("a painting in the style of neon",)
    assert TaskVector.preset("paper") == TaskVector()
    assert (TaskVector().images, TaskVector().real) == (30, 15)
    assert (TaskVector().batch, TaskVector().accumulate) == (4, 4)
    code = TaskVector.preset("repo-2025")
    assert (code.steps, code.batch * code.accumulate, code.lr, code.clip) == (200, 16, 1e-5, 1.0)
    assert (code.images, code.real) == (200, 0)
    assert code.ema
    assert code.flip
    assert code.gradient_checkpointing
    assert not TaskVector.preset("mini").gradient_checkpointing
    assert fast()(tiny, ["church"]) == fast()(tiny, ["church"])
    assert fast()(tiny, ["church"]) != fast()(tiny, ["church"], seed=1)


def test_bad_input(tiny, tmp_path, album):
    (album / "broken.png").write_bytes(b"no image")
    for fields, message in [
        ({"folder": str(tmp_path / "none"), "real": 1}, "no images in"),
        ({"folder": str(album), "real": 1}, "cannot read the image .*broken.png"),
        ({"folder": str(album), "real": 3}, r"real must be 1 to 2 \(images\), got 3"),
        ({"images": 0}, "images must be from 1 to 1000000, got 0"),
        ({"image_batch": 0}, "image_batch must be from 1 to 4096, got 0"),
        ({"only": ("no_such_block",)}, "no_such_block"),
    ]:
        with pytest.raises(BadInput, match=message):
            fast(**fields)(tiny, ["church"])


def test_gradient_checkpointing_of_the_digits():
    model = Model.load("digits:mnist")
    plain, spare = (
        fast(images=4, guidance=1.0, optimizer="sgd", gradient_checkpointing=saves)(model, [table("digits:mnist")["7"]])
        for saves in (False, True)
    )
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-6, rtol=1e-3)
