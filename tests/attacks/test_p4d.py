import pytest
import torch
from torch.nn.functional import cosine_similarity

from efface.attack import Target
from efface.attacks.p4d import P4D
from efface.attacks.search.objective import CALLS, Objective, draw
from efface.attacks.search.token_search import Search
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.finding import Finding
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

DOG = Concept("dog", prompts=("a dog",))
LIKE = Query("a red dog", seed=5, steps=2, guidance=3.0)


class Spy:
    """Record the losses, gradients and variables of every step."""

    def __init__(self, monkeypatch):
        self.steps = []
        losses = Search.losses

        def spied(search, rows, step, time):
            before = search.relaxation.values.detach().clone()
            tokens = search.relaxation.tokens()
            found = losses(search, rows, step, time)
            self.search = search
            self.steps.append({"rows": list(rows), "step": step, "time": time, "before": before, "tokens": tokens})
            self.steps[-1]["loss"] = found.detach().clone()
            return found

        monkeypatch.setattr(Search, "losses", spied)


def at(model, clean, query, seed, step):
    """Return (x_t, t) of a step, drawn by hand: a picture, a timestep, noise."""
    rng = generator(seed, "row", query.prompt, query.seed, step)
    torch.randint(1, (1,), generator=rng)
    t = torch.randint(1000, (1,), generator=rng)
    noise = torch.randn(clean.shape, generator=rng)
    alpha, sigma = model.levels(t)
    return alpha * clean + sigma * noise, t


def window(model, clean, query, seed, step):
    """Return (x_t, t) at the least noisy of 35 timesteps among 90, for a stateful guard."""
    rng = generator(seed, "row", query.prompt, query.seed, step)
    torch.randint(1, (1,), generator=rng)
    end = 90 + torch.randint(1000 - 90 + 1, (1,), generator=rng)
    t = (end - 90 + torch.randperm(90, generator=rng)[:35]).min()[None]
    noise = torch.randn(clean.shape, generator=rng)
    alpha, sigma = model.levels(t)
    return alpha * clean + sigma * noise, t


@torch.no_grad()
def by_hand(target, prompt, found, x, t, guidance):
    """Return P4D's loss of the text found, guided on both sides by more than 1."""
    edited, original = target.edited, target.original
    c, wanted, null = edited.encode([found]), original.encode([prompt]), original.null()
    if guidance == 1:
        return (edited.eps(x, t, c) - original.eps(x, t, wanted)).square().mean()
    cond, uncond = edited.denoise(x, t, c, null)
    one, none = original.eps(x, t, wanted), original.eps(x, t, null)
    return (uncond + guidance * (cond - uncond) - none - guidance * (one - none)).square().mean()


@pytest.mark.parametrize(("name", "guard"), [("tiny", ""), ("tiny", "negative"), ("tiny_xl", ""), ("tiny_xl", "sld")])
def test_the_loss_is_the_distance_of_the_edited_prediction_to_the_original_s(
    name, guard, request, monkeypatch, eye, attack_on
):
    model, spy = request.getfixturevalue(name), Spy(monkeypatch)
    target = attack_on(model, eye(), guard)
    attack = P4D(tokens=2, steps=3, look=3, guidance=4.0, earlier=0)
    attack(target, DOG, LIKE, seed=7)
    clean = model.sample([LIKE])
    for step in spy.steps:
        text = spy.search.vocabulary.text(spy.search.vocabulary.ids[step["tokens"][0]].tolist())
        x, t = (window if guard == "sld" else at)(model, clean, LIKE, 7, step["step"])
        expected = by_hand(target, LIKE.prompt, text, x, t, 4.0 if guard else 1.0)
        torch.testing.assert_close(step["loss"][0], expected, rtol=1e-3, atol=1e-6)
    assert len(spy.steps) == 3


@pytest.mark.parametrize("guard", ["", "negative", "sld"])
def test_gradients_agree_with_finite_differences_through_guards(guard, tiny, monkeypatch, eye, attack_on):
    """Along random directions, of a token's vector where it stands."""
    spy = Spy(monkeypatch)
    P4D(tokens=2, steps=1, look=1, earlier=2)(attack_on(tiny, eye(), guard), DOG, LIKE)
    search = spy.search
    vectors = search.relaxation.vectors([0], []).detach()

    def loss(moved):
        monkeypatch.setattr(search.relaxation, "vectors", lambda rows, rngs: moved)
        return Search.losses(search, [0], 0, None)[0]

    own = vectors.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(own), [own])
    assert gradient.norm() > 0
    way = gradient / gradient.norm()
    h = 3e-3 * float(vectors.norm())
    with torch.no_grad():
        slope = (float(loss(vectors + h * way)) - float(loss(vectors - h * way))) / (2 * h)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_a_step_is_adamw_of_the_variables_and_the_tokens_are_their_projection(tiny, monkeypatch, eye, attack_on):
    spy = Spy(monkeypatch)
    found = P4D(tokens=2, steps=2, look=2)(attack_on(tiny, eye()), DOG, LIKE, seed=1)
    first, second = spy.steps
    moved = (second["before"] - first["before"] * (1 - 0.1 * 0.1)).abs()
    close = (moved - 0.1).abs() < 2e-3  # Adam's first step is lr × sign of the gradient
    assert float(close.float().mean()) > 0.9
    vocabulary = spy.search.vocabulary
    start = vocabulary.random((2,), generator(1, "start", LIKE.prompt, LIKE.seed))
    torch.testing.assert_close(first["before"][0], vocabulary.vectors[start])
    final = vocabulary.ids[spy.search.relaxation.tokens()[0]].tolist()
    assert found.about["rows"][0]["ids"] == final == ids_of(tiny, found.queries[0].prompt)


@pytest.mark.slow
def test_the_image_most_like_the_original_s_is_kept(tiny, monkeypatch, eye, attack_on):
    """By the judge's CLIP; by the probability of the concept where it has none."""
    clip = eye(clip=True)
    target = attack_on(tiny, clip)
    seen = []
    rate = Search.judged
    monkeypatch.setattr(Search, "judged", lambda *args: seen.append(rate(*args)) or seen[-1])
    found = P4D(tokens=2, steps=8, look=2, lr=3.0)(target, DOG, LIKE)
    scores = [float(one[1][0]) for one in seen]
    assert len(scores) == 4
    assert len(set(scores)) > 1
    assert found.scores[0] == max(scores)
    assert found.about["rows"][0]["round"] == scores.index(max(scores))
    with torch.no_grad():
        likeness = cosine_similarity(
            clip.image_features(found.replay(target.edited)), clip.image_features(tiny.generate([LIKE]))
        )
    assert float(likeness) == pytest.approx(found.scores[0], abs=1e-4)
    plain = attack_on(tiny, eye())
    again = P4D(tokens=2, steps=2, look=2)(plain, DOG, LIKE)
    assert float(plain.seen(again.replay(plain.edited), DOG)) == pytest.approx(again.scores[0], abs=1e-4)


@pytest.mark.slow
def test_it_can_stop_at_the_first_success(tiny, eye, attack_on):
    for stop, rounds in ((True, 1), (False, 3)):
        found = P4D(tokens=2, steps=6, look=2, stop=stop)(attack_on(tiny, eye(always=True)), DOG, LIKE)
        assert found.about["rows"][0]["steps"] == 2 * rounds
        assert found.about["rows"][0]["success"]
        assert found.cost["images"] == 1 + rounds
        assert found.cost["backward"] == 2 * rounds
        assert found.cost["calls"] == 2 * 2 * (1 + rounds) + 2 * (
            2 * rounds
        )  # images are guided, both sides of the loss
    assert P4D().stop is False
    assert P4D.preset("mini").stop


def test_k_keeps_the_prompt_and_puts_a_token_before_it_and_after_every_third(tiny, eye, attack_on):
    prompt = "a red dog in the blue castle"
    ids = ids_of(tiny, prompt)
    found = P4D(variant="k", steps=2, look=2)(attack_on(tiny, eye()), DOG, Query(prompt, steps=1))
    own = found.about["rows"][0]["ids"]
    free = [i for i in range(len(own)) if i % 4 == 0]
    assert len(free) == len(ids) // 3 + 1
    assert [one for i, one in enumerate(own) if i not in free] == ids


@pytest.mark.slow
@pytest.mark.parametrize(("name", "guard"), [("tiny", "sld"), ("tiny_xl", "negative")])
def test_it_runs_through_guards_and_on_sdxl_and_replays(name, guard, request, tmp_path, eye, attack_on):
    target = attack_on(request.getfixturevalue(name), eye(), guard)
    queries = [LIKE, Query("", seed=2, steps=1), Query("a red dog", seed=9, steps=2, guidance=1.0)]
    found = P4D(tokens=3, steps=2, look=1, at_once=2, earlier=1)(target, DOG, queries)
    found.save(tmp_path / "finding.safetensors")
    again = Finding.load(tmp_path / "finding.safetensors")
    torch.testing.assert_close(again.replay(target.edited), found.replay(target.edited))
    assert found.about["retokenises"] == [True] * 3
    assert sorted(row["given"] for row in found.about["rows"]) == [0, 1, 2]
    for row, query in zip(found.about["rows"], found.queries, strict=True):
        assert query.context is None
        assert ids_of(target.edited, query.prompt) == row["ids"]
        assert query.seed == queries[row["given"]].seed
    assert [row["prompt"] for row in sorted(found.about["rows"], key=lambda row: row["given"])][1] == "a dog"


def test_a_stateful_guard_is_run_through_earlier_timesteps(tiny, monkeypatch, eye, attack_on):
    """They are the nearest ones, noisiest first, and change the loss."""
    losses, spy, given, real = [], Spy(monkeypatch), [], Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda self, c, at: given.append(at) or real(self, c, at))
    for earlier in (0, 3):
        P4D(tokens=2, steps=1, look=1, earlier=earlier)(attack_on(tiny, eye(), "sld"), DOG, LIKE)
        losses.append(float(spy.steps[-1]["loss"]))
    assert losses[0] != losses[1]
    rng = generator(0, "row", LIKE.prompt, LIKE.seed, 0)
    whole = draw(tiny, given[0].clean, [rng], CALLS)  # 35 of 90 timesteps, noisiest first; the last is learned from
    assert given[0].before.shape == (1, 0)
    assert given[1].before.tolist() == whole.before[:, -3:].tolist()
    assert given[1].before[0].tolist() == sorted(given[1].before[0].tolist(), reverse=True)
    assert given[1].before.min() > given[1].t[0]


@pytest.mark.slow
def test_rows_do_not_depend_on_each_other(tiny, eye, attack_on):
    target, attack = attack_on(tiny, eye()), P4D(tokens=2, steps=4, look=2, lr=1.0)
    queries = [LIKE, Query("a red dog", seed=9, steps=2)]
    both = attack(target, DOG, queries)
    alone = [attack(target, DOG, query) for query in queries]
    together = {row["given"]: row["ids"] for row in both.about["rows"]}
    assert [together[0], together[1]] == [one.about["rows"][0]["ids"] for one in alone]


@pytest.mark.slow
def test_a_killed_search_resumes(tiny, tmp_path, eye, attack_on):
    attack = P4D(tokens=2, steps=8, look=2, lr=1.0)
    whole = attack(attack_on(tiny, eye()), DOG, LIKE, seed=3)
    judge = eye()
    objects = judge.objects

    def tired(images):
        if judge.asked >= 4:  # two images, each asked about twice
            raise KeyboardInterrupt
        return objects(images)

    judge.objects = tired
    with checkpoints(tmp_path, every=1), pytest.raises(KeyboardInterrupt):
        attack(attack_on(tiny, judge), DOG, LIKE, seed=3)
    rested = eye()
    with checkpoints(tmp_path, every=1):
        again = attack(attack_on(tiny, rested), DOG, LIKE, seed=3)
    assert rested.asked == 4
    assert (again.id, again.scores, again.cost) == (whole.id, whole.scores, whole.cost)


def test_bad_input(tiny, eye, lamp):
    with pytest.raises(BadInput, match="generates the concept with the original model"):
        P4D()(Target(tiny, eye()), DOG, LIKE)
    with pytest.raises(BadInput, match="asks a judge"):
        P4D()(Target(tiny, None, tiny), DOG, LIKE)
    with pytest.raises(BadInput, match="no text encoder"):
        P4D()(Target(lamp.model, lamp.judge, lamp.model), "0", LIKE)
    with pytest.raises(BadInput, match="prompt of 16 tokens does not fit: the text encoder reads 14"):
        P4D()(Target(tiny, eye(), tiny), DOG, LIKE)
    with pytest.raises(UnknownName, match="class of the judge 'castle'"):
        P4D(tokens=2)(Target(tiny, eye(), tiny), "castle", LIKE)
    with pytest.raises(BadInput, match=r"tokens must be from 1 to 75, got 0"):
        P4D(tokens=0)
    with pytest.raises(BadInput, match="every must be from 1 to 75, got 0"):
        P4D(every=0)
