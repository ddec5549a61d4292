import pytest
import torch
from PIL import Image

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.images import training_prompts
from efface.methods.task_vector import TaskVector
from efface.models.images import folder_latents, noised


def fast(**fields):
    return TaskVector(**{"steps": 2, "batch": 2, "lr": 1e-3, "images": 2, "image_steps": 2, **fields})


@pytest.fixture
def album(tmp_path):
    for i in range(3):
        Image.new("RGB", (40 + i, 30), (80 * i, 10, 200)).save(tmp_path / f"{i}.png")
    return tmp_path


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
    alone, both = fast(folder=str(album), images=0)(tiny, ["church"]), fast(folder=str(album))(tiny, ["church"])
    assert alone != both
    assert alone == fast(folder=str(album), images=0)(tiny, ["dog"])  # the prompt plays no part


def test_noised_is_the_scheduler_s(tiny):
    clean, noise, t = torch.randn(2, *tiny.latent_shape), torch.randn(2, *tiny.latent_shape), torch.tensor([10, 900])
    torch.testing.assert_close(noised(tiny, clean, noise, t), tiny.part("scheduler").add_noise(clean, noise, t))


def test_prompts_presets_and_seed(tiny):
    assert training_prompts(Concept("neon", kind="style")) == ("a painting in the style of neon",)
    assert TaskVector.preset("paper") == TaskVector()
    assert TaskVector.preset("repo-2025").steps == 200
    assert fast()(tiny, ["church"]) == fast()(tiny, ["church"])
    assert fast()(tiny, ["church"]) != fast()(tiny, ["church"], seed=1)


def test_bad_input(tiny, tmp_path, album):
    (album / "broken.png").write_bytes(b"no image")
    for fields, message in [
        ({"folder": str(tmp_path / "none")}, "no images in"),
        ({"folder": str(album)}, "cannot read the image .*broken.png"),
        ({"images": 0}, "images must be at least 1"),
        ({"images": -1}, "images must be 0 or more"),
        ({"only": ("no_such_block",)}, "no_such_block"),
    ]:
        with pytest.raises(BadInput, match=message):
            fast(**fields)(tiny, ["church"])
