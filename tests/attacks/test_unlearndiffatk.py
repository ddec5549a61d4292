import pytest
import torch

from efface.attack import Target
from efface.attacks.search.relaxations import Simplex
from efface.attacks.search.token_search import Search
from efface.attacks.search.vocabulary import Vocabulary
from efface.attacks.unlearndiffatk import UnlearnDiffAtk
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

DOG = Concept("dog", prompts=("a dog",))
LIKE = Query("a red dog", seed=5, steps=2, guidance=3.0)
NO, YES = {"always": False}, {"always": True}


@pytest.fixture
def spied(monkeypatch):
    """Record the drawn vectors, variables and loss of every step."""
    steps, losses = [], Search.losses

    def spy(search, rows, step, time):
        drawn = {}
        vectors = search.relaxation.vectors

        def seen(own, rngs):
            drawn["vectors"] = vectors(own, rngs)
            return drawn["vectors"]

        search.relaxation.vectors = seen
        before = search.relaxation.values.detach().clone()
        found = losses(search, rows, step, time)
        search.relaxation.vectors = vectors
        steps.append({"search": search, "rows": list(rows), "step": step, "time": time, "before": before})
        steps[-1] |= {"loss": found.detach().clone(), "vectors": drawn["vectors"].detach()}
        return found

    monkeypatch.setattr(Search, "losses", spy)
    return steps


def words(search, vectors):
    """Return the ids of the tokens whose vectors these are."""
    return search.vocabulary.ids[torch.cdist(vectors, search.vocabulary.vectors).argmin(1)].tolist()


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_the_loss_is_the_noise_s_at_one_timestep_after_another(name, request, spied, eye, attack_on):
    model = request.getfixturevalue(name)
    target = attack_on(model, eye(**NO))
    UnlearnDiffAtk(tokens=2, timesteps=2, iterations=2)(target, DOG, LIKE, seed=7)
    assert [step["time"] for step in spied] == [250, 250, 750, 750]
    clean, edited = model.sample([LIKE]), target.edited
    for step in spied:
        search = step["search"]
        rng = generator(7, "row", LIKE.prompt, LIKE.seed, step["step"])
        drawn = [torch.multinomial(step["before"][0], 1, generator=rng)[:, 0]]
        ids = search.vocabulary.ids[drawn[0]].tolist()
        assert ids == words(search, step["vectors"][0])
        noise = torch.randn(clean.shape[1:], generator=rng)[None]
        alpha, sigma = model.levels(step["time"])
        c = edited.encode([search.vocabulary.text([*ids, *ids_of(model, LIKE.prompt)])])
        with torch.no_grad():
            expected = (edited.eps(alpha * clean + sigma * noise, step["time"], c) - noise).square().mean()
        torch.testing.assert_close(step["loss"][0], expected, rtol=1e-3, atol=1e-6)


def test_timesteps_are_the_published_ones():
    assert UnlearnDiffAtk().times(1000) == tuple(range(10, 1000, 20))
    assert UnlearnDiffAtk().iterations == 40
    assert len(UnlearnDiffAtk().frame(Concept("x", kind="unsafe"), [3]).free) == 5
    assert UnlearnDiffAtk().frame(DOG, [3, 4]).filled([7, 8, 9]) == (7, 8, 9, 3, 4)
    assert UnlearnDiffAtk.preset("p4d").frame(DOG, [3]).shape == (16, tuple(range(16)))


def test_a_step_is_adam_with_decay_in_the_gradient_then_the_simplex(tiny, spied, eye, attack_on):
    UnlearnDiffAtk(tokens=1, timesteps=1, iterations=2, weight_decay=0.5)(attack_on(tiny, eye(**NO)), DOG, LIKE)
    first, second = (step["before"][0, 0] for step in spied)
    assert float(second.min()) >= 0
    assert float(second.sum()) == pytest.approx(1, abs=1e-4)
    assert not torch.equal(first, second)
    size = len(first)
    # every entry of the uniform start moved by ± lr; projected back, those that rose share 1 and the others hold less
    levels = second.unique()
    assert float(second.max() - second.min()) <= 0.02 + 1e-5
    assert float(second.max()) > 1 / size
    assert len(levels) > 1


def test_the_prompt_itself_is_tried_first_and_counted(tiny, spied, eye, attack_on):
    found = UnlearnDiffAtk(tokens=1, timesteps=2, iterations=1)(attack_on(tiny, eye(**YES)), DOG, [LIKE, LIKE])
    assert spied == []
    assert [row["before"] for row in found.about["rows"]] == [True, True]
    assert found.queries == (LIKE, LIKE)
    assert found.cost["backward"] == 0
    assert found.cost["images"] == 4  # the original's and the edited model's


def test_it_stops_at_the_first_success_of_each_query(tiny, spied, monkeypatch, eye, attack_on):
    """The second query is never seen to succeed, the first after two timesteps."""
    judge, calls = eye(**NO), []
    target = attack_on(tiny, judge)

    def judged(search, queries, rows):
        calls.append(list(rows))
        success = torch.tensor([row == 0 and len(calls) == 3 for row in rows])
        return success, torch.tensor([float(len(calls)) if row else 0.1 for row in rows])

    monkeypatch.setattr(Search, "judged", judged)
    other = Query("a red dog", seed=6, steps=2, guidance=1.0)
    found = UnlearnDiffAtk(tokens=1, timesteps=4, iterations=3)(target, DOG, [LIKE, other])
    assert calls == [[0, 1], [0, 1], [0, 1], [1], [1]]
    assert [step["rows"] for step in spied] == [[0, 1]] * 6 + [[1]] * 6
    first, second = found.about["rows"]
    assert (first["given"], first["success"], first["round"], first["steps"]) == (0, True, 1, 6)
    assert (second["given"], second["success"], second["round"], second["steps"]) == (1, False, 3, 12)
    assert found.cost["backward"] == 6 * 2 + 6
    assert found.cost["calls"] == 3 * (2 + 1) * 4 + 3 * 2 + 18  # images (PNDM: 3 calls), the first guided; steps


def test_without_stop_a_query_that_succeeds_is_searched_to_the_end(tiny, spied, monkeypatch, eye, attack_on):
    """Every image but the plain one succeeds; that of the third round, the best, is what is found."""
    scores = iter([0.0, 0.1, 0.2, 0.9, 0.3])

    def judged(search, queries, rows):
        score = next(scores)
        return torch.tensor([score > 0]), torch.tensor([score])

    monkeypatch.setattr(Search, "judged", judged)
    found = UnlearnDiffAtk(tokens=1, timesteps=4, iterations=1, stop=False)(attack_on(tiny, eye(**NO)), DOG, LIKE)
    assert len(spied) == 4
    (only,) = found.about["rows"]
    assert (only["success"], only["round"], only["steps"]) == (True, 2, 4)


@pytest.mark.parametrize("preset", ["paper", "p4d-uda", "p4d", "mini"])
@pytest.mark.parametrize(("name", "guard"), [("tiny", ""), ("tiny", "sld"), ("tiny_xl", "negative")])
def test_presets_run_and_replay(preset, name, guard, request, eye, attack_on):
    model = request.getfixturevalue(name)
    target = attack_on(model, eye(**NO), guard)
    attack = UnlearnDiffAtk.preset(preset, tokens=2, timesteps=1, iterations=1, earlier=1)
    found = attack(target, DOG, [LIKE])
    row = found.about["rows"][0]
    length = 2 if preset == "p4d" else 2 + len(ids_of(model, LIKE.prompt))
    assert len(row["ids"]) == length
    assert (found.queries[0].context is None) == row["retokenises"]
    if row["retokenises"]:
        assert ids_of(model, found.queries[0].prompt) == row["ids"]
    assert found.replay(target.edited).shape == (1, 3, *[model.family.image_size] * 2)
    if preset == "mini":
        assert row["retokenises"]


def test_against_a_guard_the_score_is_matched(tiny, spied, eye, attack_on):
    """A loss on noise would not see a negative prompt at all."""
    target = attack_on(tiny, eye(**NO), "negative")
    UnlearnDiffAtk(tokens=1, timesteps=1, iterations=1, guidance=4.0)(target, DOG, LIKE)
    step = spied[0]
    search, null = step["search"], tiny.null()
    rng = generator(0, "row", LIKE.prompt, LIKE.seed, 0)
    ids = search.vocabulary.ids[torch.multinomial(step["before"][0], 1, generator=rng)[:, 0]].tolist()
    noise, clean = torch.randn(4, 8, 8, generator=rng)[None], tiny.sample([LIKE])
    alpha, sigma = tiny.levels(500)
    x = alpha * clean + sigma * noise
    c = tiny.encode([search.vocabulary.text([*ids, *ids_of(tiny, LIKE.prompt)])])
    with torch.no_grad():
        cond, uncond = target.edited.denoise(x, 500, c, null)
        one, none = tiny.denoise(x, 500, tiny.encode([LIKE.prompt]), null)
        expected = (uncond + 4 * (cond - uncond) - none - 4 * (one - none)).square().mean()
    torch.testing.assert_close(step["loss"][0], expected, rtol=1e-3, atol=1e-6)


def test_forbidden_and_typable(tiny, eye, attack_on):
    target = attack_on(tiny, eye(**NO))
    attack = UnlearnDiffAtk(tokens=4, timesteps=1, iterations=1, forbid_name=True)
    found = attack(target, DOG, [Query("a fox", seed=i, steps=1) for i in range(4)])
    (dog,) = ids_of(tiny, "dog")
    assert all(dog not in row["ids"] for row in found.about["rows"])
    assert all(found.about["retokenises"])


@pytest.mark.slow
def test_a_killed_search_resumes(tiny, tmp_path, eye, attack_on):
    attack = UnlearnDiffAtk(tokens=2, timesteps=3, iterations=2, lr=0.3)
    queries = [LIKE, Query("a fox", seed=1, steps=1)]
    whole = attack(attack_on(tiny, eye(**NO)), DOG, queries, seed=3)
    judge = eye(**NO)
    objects = judge.objects

    def tired(images):
        if judge.asked >= 8:
            raise KeyboardInterrupt
        return objects(images)

    judge.objects = tired
    with checkpoints(tmp_path, every=1), pytest.raises(KeyboardInterrupt):
        attack(attack_on(tiny, judge), DOG, queries, seed=3)
    rested = eye(**NO)
    with checkpoints(tmp_path, every=1):
        again = attack(attack_on(tiny, rested), DOG, queries, seed=3)
    assert 0 < rested.asked < 16
    assert (again.id, again.scores, again.about) == (whole.id, whole.scores, whole.about)


def test_bad_input(tiny, eye):
    with pytest.raises(BadInput, match="timesteps must be from 1 to 1000, got 2000"):
        UnlearnDiffAtk(timesteps=2000)
    with pytest.raises(BadInput, match="prompt of 16 tokens does not fit"):
        UnlearnDiffAtk(tokens=14)(Target(tiny, eye(), tiny), DOG, Query("a dog"))
    with pytest.raises(BadInput, match="generates the concept with the original model"):
        UnlearnDiffAtk()(Target(tiny, eye()), DOG, LIKE)


def test_the_gradient_of_a_drawn_token_is_that_of_the_probabilities_clipped(tiny):
    """By hand: d loss / d p = table · d loss / d vector, each entry at most 1 in size."""
    vocabulary = Vocabulary.of(tiny, False, ())
    relaxed = Simplex(vocabulary, 2, 1)
    vectors = relaxed.vectors([1], [torch.Generator().manual_seed(0)])
    weight = torch.linspace(-1, 1, vectors.shape[-1])
    slope = vocabulary.vectors @ weight
    size = 2 / float(slope.abs().max())  # half of the range is clipped
    (size * vectors * weight).sum().backward()
    assert relaxed.values.grad is not None
    torch.testing.assert_close(relaxed.values.grad[1, 0], (size * slope).clamp(-1, 1))
    assert not relaxed.values.grad[0].any()
