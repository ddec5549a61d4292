"""Relearning and harmless fine-tuning."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from efface.attack import Target
from efface.attacks.harmless_finetuning import HARMLESS, HarmlessFinetuning, names
from efface.attacks.relearning import Relearning
from efface.attacks.search.finetuning import Student
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput
from efface.finding import Finding
from efface.models.model import Model
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

CHURCH = Concept("church")
QUICK = {"steps": 3, "batch": 2, "images": 2, "lr": 1e-3}


@pytest.mark.slow
def test_the_edit_added_to_the_erasing_one_is_the_relearned_model(pix):
    found = Relearning(**QUICK)(Target(pix.edited, pix.judge, pix.original), CHURCH, pix.queries)
    assert found.edit is not None
    with found.edit.applied(pix.edited) as one, (pix.edit + found.edit).applied(pix.original) as both:
        weights, other, before = one.weights(), both.weights(), pix.edited.weights()
        assert set(found.edit.delta) == set(before)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, other[name], atol=1e-6, rtol=0)
            assert not torch.equal(weight, before[name]), name
        torch.testing.assert_close(found.replay(pix.edited), both.generate(found.queries), atol=1e-3, rtol=0)
    assert found.queries in (pix.queries, pix.queries[::-1])


def test_the_first_step_is_adamw_on_the_noise_of_the_pictures(pix):
    """Recomputed with autograd: AdamW's first step is lr times the gradient's sign, after the weight decay."""
    target = Target(pix.edited, None, pix.original)
    found = Relearning(steps=1, batch=3, images=2, lr=1e-3)(target, CHURCH, pix.queries)
    latents = pictures(target, CHURCH.texts, 2, pix.queries[0], 0)
    rng = generator(0, "draw", 0)
    which, t = torch.randint(2, (3,), generator=rng), torch.randint(1000, (3,), generator=rng)
    noise = torch.randn(3, 4, 8, 8, generator=rng)
    name = "unet.conv_in.weight"
    weight = pix.edited.weights()[name].detach().clone().requires_grad_()
    student = pix.edited.edited({name: weight})
    student.weights()[name].requires_grad_()
    alpha, sigma = student.levels(t)
    x = alpha * latents[which] + sigma * noise
    loss = (student.eps(x, t, student.encode([CHURCH.texts[0]])) - noise).square().mean()
    (gradient,) = torch.autograd.grad(loss, student.weights()[name])
    assert found.about["loss"] == pytest.approx([float(loss.detach())], rel=1e-4)
    wanted = -1e-3 * gradient.sign() - 1e-3 * 1e-2 * weight.detach()
    assert float(((found.edit.delta[name] - wanted).abs() < 2e-5).float().mean()) > 0.95


@pytest.mark.slow
def test_relearning_brings_the_original_prediction_back(pix):
    """Cross-attention alone was changed, and it is trained alone: its loss falls."""
    attack = Relearning(steps=30, batch=6, images=6, lr=5e-3, params="x")
    found = attack(Target(pix.edited, None, pix.original), CHURCH, pix.queries)
    losses = found.about["loss"]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert found.scores[0] == pytest.approx(-sum(losses[-3:]) / 3)
    assert all(".attn2." in name for name in found.edit.delta)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "negative", "sld"])
def test_lora_leaves_a_low_rank_and_guards_stay(pix, kind, tmp_path):
    model = pix.models[kind]
    target = Target(model, pix.judge, pix.original)
    found = HarmlessFinetuning(**QUICK, rank=3)(target, CHURCH, pix.queries)
    assert found.edit is not None
    assert all("attn" in name and name.endswith("weight") for name in found.edit.delta)
    for name, delta in found.edit.delta.items():
        values = torch.linalg.svdvals(delta.double())
        assert float(values[0]) > 0, name
        assert float(values[3:].max()) < 1e-5 * float(values[0]), name
    assert found.edit.guards == ()
    with found.edit.applied(model) as changed:
        assert changed.guards == model.guards
    seen = pix.judge.objects(found.replay(model))[:, 0]
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-3, rtol=0)
    found.save(tmp_path / "finding.safetensors")
    again = Finding.load(tmp_path / "finding.safetensors")
    assert again.edit == found.edit
    assert torch.equal(again.replay(model), found.replay(model))


@pytest.mark.parametrize(("preset", "part"), [("lora", "attn"), ("x", ".attn2."), ("full", "unet.")])
def test_the_papers_three_ways(pix, preset, part):
    attack = HarmlessFinetuning.preset(preset, **QUICK)
    assert attack.rank == (8 if preset == "lora" else 0)
    found = attack(Target(pix.edited, None, pix.original), CHURCH, pix.queries)
    assert all(part in name for name in found.edit.delta)
    if preset == "lora":
        assert all(torch.linalg.matrix_rank(d.double(), rtol=1e-5) <= 8 for d in found.edit.delta.values())
    else:
        trained = {name for name in pix.edited.weights() if preset == "full" or part in name}
        assert set(found.edit.delta) == trained


def test_the_student_with_factors_is_the_model_with_their_product(pix):
    student = Student(pix.edited, "attn", 2, 0)
    assert all(not d.any() for d in student.delta().values())
    for number, (down, up) in enumerate(student.factors.values()):
        assert float(down.detach().abs().max()) <= down.shape[1] ** -0.5
        up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    x, c = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), pix.edited.encode(["a church"])
    changed = {name: pix.edited.weights()[name] + d for name, d in student.delta().items()}
    with torch.no_grad():
        wanted, made = pix.edited.edited(changed).eps(x, 500, c), student.model.eps(x, 500, c)
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
        assert not torch.allclose(made, pix.edited.eps(x, 500, c), atol=1e-4)


def test_half_precision_is_trained_in_fp32(tiny):
    import copy

    half = copy.deepcopy(tiny.part("unet")).to(torch.bfloat16)
    pipe = copy.copy(tiny.pipe)
    pipe.unet = half
    student = Student(Model(pipe), "x", 0, 0)
    name = next(iter(student.weights))
    master = student.trained[name]
    assert master.dtype == torch.float32
    student.weights[name].grad = torch.ones_like(student.weights[name])
    student.gather()
    assert bool((master.grad == 1).all())
    master.data.add_(1e-6)
    student.publish()
    assert float(student.delta()[name].mean()) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.slow
def test_the_target_is_left_as_it_was(pix):
    target = Target(pix.edited, pix.judge, pix.original)
    before = {name: weight.detach().clone() for name, weight in pix.edited.weights("").items()}
    image = pix.edited.generate(pix.queries)
    HarmlessFinetuning(**QUICK)(target, CHURCH, pix.queries)
    Relearning(**QUICK)(target, CHURCH, pix.queries)
    assert all(torch.equal(weight, before[name]) for name, weight in pix.edited.weights("").items())
    assert all(weight.grad is None for weight in pix.edited.weights("").values())
    assert torch.equal(pix.edited.generate(pix.queries), image)


@pytest.mark.slow
def test_resume_and_seed(pix, tmp_path):
    attack, target = HarmlessFinetuning(**QUICK), Target(pix.edited, None, pix.original)
    one = attack(target, CHURCH, pix.queries)
    with checkpoints(tmp_path / "run"):
        two = attack(target, CHURCH, pix.queries)
        again = attack(target, CHURCH, pix.queries)
        with pytest.raises(BadInput, match="belongs to another run"):
            replace(attack, lr=1e-2)(target, CHURCH, pix.queries)
    assert one.edit == two.edit == again.edit
    assert one.edit != attack(target, CHURCH, pix.queries, seed=1).edit
    made = {"images": 2, "calls": 2 * 12 + 3 * 2, "backward": 3 * 2}
    assert one.cost == two.cost == made


@pytest.mark.slow
def test_on_sdxl(pix_xl):
    target = Target(pix_xl.edited, pix_xl.judge, pix_xl.original)
    found = HarmlessFinetuning(**QUICK)(target, CHURCH, pix_xl.queries)
    again = Relearning(**QUICK, params="x")(target, CHURCH, pix_xl.queries)
    for one in (found, again):
        seen = pix_xl.judge.objects(one.replay(pix_xl.edited))[:, 0]
        torch.testing.assert_close(seen, torch.tensor(one.scores), atol=1e-3, rtol=0)


def test_the_concept_is_not_in_harmless_data(pix, tmp_path):
    target = Target(pix.edited, None, pix.original)
    assert "a photo of a church" in HARMLESS
    assert HarmlessFinetuning().captions(CHURCH) == tuple(text for text in HARMLESS if "church" not in text)
    with pytest.raises(BadInput, match="must not show church, but a caption says church: 'two Churches'"):
        HarmlessFinetuning(**QUICK, prompts=("a dog", "two Churches"))(target, CHURCH, pix.queries)
    with pytest.raises(BadInput, match="says altar"):
        HarmlessFinetuning(**QUICK, prompts=("an altar",))(target, replace(CHURCH, keywords=("altar",)), pix.queries)
    assert names(CHURCH, "a photo of Churchill") == ""
    found = HarmlessFinetuning(**QUICK, prompts=("a dog", "a cat", "a fox"))(target, CHURCH, pix.queries)
    assert found.about["captions"] == ["a dog", "a cat", "a fox"]


def test_a_folder_with_captions(pix, tmp_path):
    target, attack = Target(pix.edited), HarmlessFinetuning(**QUICK, folder=str(tmp_path))
    with pytest.raises(BadInput, match="no images in"):
        attack(target, CHURCH, pix.queries)
    for i, name in enumerate(("a.png", "b.png")):
        Image.fromarray((pix.judge.images[i] * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a dog\n")
    with pytest.raises(BadInput, match=r"b\.png needs a caption"):
        attack(target, CHURCH, pix.queries)
    (tmp_path / "b.txt").write_text(" ")
    with pytest.raises(BadInput, match="is empty"):
        attack(target, CHURCH, pix.queries)
    (tmp_path / "b.txt").write_text("a red church")
    with pytest.raises(BadInput, match="must not show church"):
        attack(target, CHURCH, pix.queries)
    (tmp_path / "b.txt").write_text("a house")
    found = attack(target, CHURCH, pix.queries)
    assert found.about["captions"] == ["a dog", "a house"]
    assert found.cost["images"] == 0
    own = Relearning(**QUICK, folder=str(tmp_path))(target, CHURCH, pix.queries)
    assert isinstance(own.edit, Edit)


def test_bad_input(pix):
    for attack in (Relearning(**QUICK), HarmlessFinetuning(**QUICK)):
        with pytest.raises(BadInput, match="needs pictures"):
            attack(Target(pix.edited), CHURCH, pix.queries)
    target = Target(pix.edited, None, pix.original)
    with pytest.raises(BadInput, match="matches no weight"):
        Relearning(params="nothing")(target, CHURCH, pix.queries)
    with pytest.raises(BadInput, match="no linear layer"):
        Relearning(params="*conv_in*", rank=2)(target, CHURCH, pix.queries)
    found = Relearning(**QUICK)(target, CHURCH, pix.queries)
    other = pix.original.edited({n: w * 2 for n, w in pix.original.weights().items()})
    with pytest.raises(BadEdit):
        found.replay(Model(other.pipe))
