"""Image prompt: plain image-to-image, and the adversarial picture."""

from dataclasses import replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.image_prompt import ImagePrompt, spaced
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.errors import BadInput
from efface.finding import Finding
from efface.judge import Judge
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

CHURCH = Concept("church")
FEW = {"iterations": 2, "timesteps": 2, "every": 1, "lr": 0.05}


def draw(*key):
    return torch.randn(1, 4, 8, 8, generator=generator(*key))


def reference(pix):
    return pictures(Target(pix.original, None, pix.original), CHURCH.texts, 1, pix.queries[0], 0)


def test_the_timesteps_are_those_of_the_code():
    assert spaced(1000, 50) == list(range(10, 1000, 20))
    assert spaced(5, 50) == list(range(5))


def test_plain_image_to_image_starts_from_the_noised_reference(pix):
    """By hand: 5 of 6 steps are left at strength 0.9, and the noise is the row's own."""
    attack = ImagePrompt(iterations=0, strength=0.9)
    found = attack(Target(pix.edited, None, pix.original), CHURCH, pix.queries)
    clean = reference(pix)
    torch.testing.assert_close(found.tensors["reference"], clean)
    t = pix.original.timesteps(6, "ddim")[1:2]
    for i, query in enumerate(found.queries):
        alpha, sigma = pix.original.levels(t)
        assert query.start == 1
        torch.testing.assert_close(query.latents, alpha * clean + sigma * draw(0, "start", i))
        torch.testing.assert_close(found.tensors["pictures"][i], clean[0])
    assert found.cost == {"images": 1, "calls": 12, "backward": 0, "texts": 2}


def test_a_late_start_shows_the_reference(pix):
    """At little strength even an edited model shows it; on the original the attack succeeds with the reference."""
    clean = pix.original.decode(reference(pix))
    judge = type(pix.judge)(clean, 30.0)
    weak, strong = (
        ImagePrompt(iterations=0, strength=s)(Target(pix.edited, judge, pix.original), CHURCH, pix.queries)
        for s in (0.1, 1.0)
    )
    assert min(weak.scores) > 0.9 > max(strong.scores)
    found = ImagePrompt(**FEW, strength=0.1)(Target(pix.original, judge, pix.original), CHURCH, pix.queries)
    assert found.about == {"loss": [], "timesteps": [0, 0]}
    assert min(found.scores) > 0.9


@pytest.mark.parametrize("follow", ["reference", "original"])
@pytest.mark.parametrize("kind", ["weights", "negative", "sld"])
def test_the_steps_are_those_recomputed_by_hand(pix, follow, kind):
    model = pix.models[kind]
    attack = ImagePrompt(**FEW, follow=follow)
    found = attack(Target(model, None, pix.original), CHURCH, pix.queries[:1])
    clean, c, null = reference(pix), model.encode([pix.queries[0].prompt]), model.null()
    own = pix.original.encode([CHURCH.texts[0]])
    x = 0.25 * clean + 0.75 * draw(0, "blend", 0)
    velocity, losses = torch.zeros_like(x), []
    for step, time in enumerate([250, 250, 750, 750]):
        x = x.detach().requires_grad_()
        t, noise = torch.tensor([time]), draw(0, "row", 0, step)
        alpha, sigma = model.levels(t)
        made = torch.stack(model.denoise(alpha * x + sigma * noise, t, c, null))
        if follow == "reference":
            goal = torch.stack(model.denoise(alpha * clean + sigma * noise, t, c, null)).detach()
        else:
            goal = torch.stack(pix.original.denoise(alpha * x + sigma * noise, t, own, null))
        loss = (made - goal).square().mean()
        (gradient,) = torch.autograd.grad(loss, x)
        velocity = 0.9 * velocity + gradient / gradient.abs().mean()
        x = x.detach() - 0.05 * velocity.sign()
        losses.append(float(loss.detach()))
        if step % 2:
            x = x + 0.05 * clean
    assert found.about["loss"] == pytest.approx(losses, rel=1e-2)
    same = (found.tensors["pictures"] - x).abs() < 1e-4
    assert float(same.float().mean()) > 0.9  # a gradient near zero may have either sign
    assert found.scores[0] == pytest.approx(-losses[-1], rel=1e-2)
    own = 3 if kind == "sld" else 2  # SLD predicts for its concept too
    assert found.cost["calls"] == 12 + 4 * (own + (own if follow == "reference" else 2))
    assert found.cost["backward"] == own * 4


@pytest.mark.slow
def test_descending_brings_the_prediction_to_its_goal(pix):
    attack = ImagePrompt(iterations=20, timesteps=1, lr=0.1, pull=0.0)
    losses = attack(Target(pix.edited, None, pix.original), CHURCH, pix.queries[:1]).about["loss"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.slow
def test_with_a_judge_each_query_keeps_its_best_picture(pix):
    target = Target(pix.edited, pix.judge, pix.original)
    found = ImagePrompt(**FEW)(target, CHURCH, pix.queries)
    first = ImagePrompt(iterations=0)(target, CHURCH, pix.queries)
    seen = pix.judge.objects(found.replay(pix.edited))[:, 0]
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=0)
    assert sorted(found.scores) >= sorted(first.scores)
    won = type(pix.judge)(pix.edited.generate(first.queries[:1]))
    again = ImagePrompt(**FEW)(Target(pix.edited, won, pix.original), CHURCH, pix.queries)
    assert again.scores[0] > 0.999
    assert again.about["timesteps"][0] == 0


@pytest.mark.slow
def test_resume_replay_and_rows(pix, tmp_path):
    """Rows do not depend on each other, a stopped run resumes to the same, and the finding survives a file."""
    target, attack = Target(pix.edited, pix.judge, pix.original), ImagePrompt(**FEW)
    one = attack(target, CHURCH, pix.queries)
    with checkpoints(tmp_path / "run", every=1):
        with pytest.raises(KeyboardInterrupt):
            attack(Target(pix.edited, Stop(pix.judge, 3), pix.original), CHURCH, pix.queries)
        two = attack(target, CHURCH, pix.queries)
    assert one.queries == two.queries
    assert one.about == two.about
    assert one.cost == two.cost
    two.save(tmp_path / "finding.safetensors")
    again = Finding.load(tmp_path / "finding.safetensors")
    assert torch.equal(again.replay(pix.edited), one.replay(pix.edited))
    alone = attack(target, CHURCH, pix.queries[:1])
    assert min(abs(alone.scores[0] - score) for score in one.scores) < 1e-3


class Stop(Judge):
    """Interrupt after some calls of a judge."""

    classes = ("church", "house")

    def __init__(self, judge, calls):
        self.judge, self.left = judge, calls

    @property
    def profile(self):
        return self.judge.profile

    def objects(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.judge.objects(images)


@pytest.mark.slow
def test_on_sdxl(pix_xl):
    queries = [replace(query, solver="") for query in pix_xl.queries]
    attack = ImagePrompt(**FEW, solver="")
    found = attack(Target(pix_xl.edited, pix_xl.judge, pix_xl.original), CHURCH, queries)
    seen = pix_xl.judge.objects(found.replay(pix_xl.edited))[:, 0]
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=0)


def test_bad_input(pix, tmp_path):
    with pytest.raises(BadInput, match="needs a reference"):
        ImagePrompt()(Target(pix.edited), CHURCH, pix.queries)
    with pytest.raises(BadInput, match="needs a reference"):
        ImagePrompt(folder=str(tmp_path), follow="original")(Target(pix.edited), CHURCH, pix.queries)
    with pytest.raises(BadInput, match="no images in"):
        ImagePrompt(folder=str(tmp_path))(Target(pix.edited), CHURCH, pix.queries)
    with pytest.raises(BadInput, match="cannot begin in the middle"):
        ImagePrompt(solver="pndm")(Target(pix.edited, None, pix.original), CHURCH, pix.queries)
    with pytest.raises(BadInput, match="strength must be above 0"):
        ImagePrompt(strength=0.0)
