import json

import pytest
import torch
from transformers import CLIPTextModel

from efface.attack import Target
from efface.attacks.ring_a_bell import RingABell
from efface.attacks.search import genetic
from efface.attacks.search.directions import direction, pairs
from efface.attacks.search.genetic import Genes, crossed, evolve, mutated
from efface.attacks.search.inverting import TEMPLATES
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

DOG = Concept("dog")
LIKE = Query("a red fox", seed=5, steps=1)
SMALL = {"length": 4, "population": 12, "generations": 6}


@torch.no_grad()
def loss_by_hand(model, concept, prompt, eta, text):
    """Return the squared distance of a text to the target, summed, from texts alone."""
    templates = TEMPLATES[concept.kind]
    shown = model.encode([one.replace("{}", concept.name) for one in templates]).tokens
    absent = model.encode([one.replace("{}", "").replace("  ", " ").strip() for one in templates]).tokens
    goal = model.encode([prompt]).tokens[0] + eta * (shown - absent).mean(0)
    return float(((goal - model.encode([text]).tokens[0]) ** 2).sum())


@pytest.mark.parametrize("by", ["genetic", "gradient"])
@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_the_loss_is_the_distance_to_the_prompt_with_more_of_the_concept(name, by, request):
    model = request.getfixturevalue(name)
    attack = RingABell(by=by, steps=5, starts=2, eta=2.0, **SMALL)
    found = attack(Target(model), DOG, LIKE, seed=1)
    (query,) = found.queries
    assert found.about["retokenises"] == [True]
    assert ids_of(model, query.prompt) == found.about["ids"][0]
    assert len(found.about["ids"][0]) == 4
    expected = loss_by_hand(model, DOG, LIKE.prompt, 2.0, query.prompt)
    assert -found.scores[0] == pytest.approx(expected, rel=1e-4)
    if by == "gradient":
        assert min(found.about["loss"][LIKE.prompt]) >= expected / 2
        assert -found.scores[0] < 1.01 * found.about["loss"][LIKE.prompt][0]
    assert (query.seed, query.steps, query.context) == (5, 1, None)
    assert found.cost["calls"] == found.cost["images"] == 0


@pytest.mark.slow
def test_it_finds_the_best_prompt_of_one_token(tiny):
    """With every token tried the optimum is known."""
    attack = RingABell(length=1, population=96, generations=8, mutation=1.0, crossover=0.0, keep=False, eta=1.0)
    found = attack(Target(tiny), DOG, LIKE, seed=2)
    from efface.attacks.search.vocabulary import Vocabulary

    vocabulary = Vocabulary.of(tiny)
    texts = [vocabulary.text([i]) for i in vocabulary.ids.tolist()]
    losses = [loss_by_hand(tiny, DOG, LIKE.prompt, 1.0, text) for text in texts]
    assert min(found.about["loss"][LIKE.prompt]) == pytest.approx(min(losses), rel=1e-4)


def test_the_gradient_search_improves(tiny):
    attack = RingABell(by="gradient", length=4, steps=60, starts=4, lr=0.5, keep=False)
    found = attack(Target(tiny), DOG, LIKE)
    first = RingABell(by="gradient", length=4, steps=1, starts=4, lr=0.5, keep=False)(Target(tiny), DOG, LIKE)
    assert found.scores[0] > first.scores[0]
    assert found.cost["backward"] == 240


def test_children_take_one_s_head_and_another_s_tail():
    parents = torch.arange(6)[:, None] * 10 + torch.arange(5)[None]
    found = crossed(parents, 0.5, generator(3))
    assert torch.equal(found[:6], parents)
    pairs_of = (len(found) - 6) // 2
    assert 0 < pairs_of < 6
    for one, other in zip(found[6 : 6 + pairs_of], found[6 + pairs_of :], strict=True):
        owners, others = one // 10, other // 10
        assert torch.equal(one % 10, torch.arange(5))
        assert len(owners.unique()) <= 2
        changes = (owners[1:] != owners[:-1]).sum()
        assert changes <= 1
        assert owners[-1] == others[0] or changes == 0
    assert len(crossed(parents, 1.0, generator(3))) == 18
    assert len(crossed(parents, 0.0, generator(3))) == 6


def test_a_mutation_replaces_one_token():
    rows = torch.zeros(400, 6, dtype=torch.long)
    found = mutated(rows, 0.25, 50, generator(1))
    changed = (found != 0).sum(1)
    assert changed.max() == 1
    assert 0.15 < float((changed == 1).float().mean()) < 0.35
    assert (found != 0).any(0).all()
    assert found.max() < 50
    assert not rows.any()


def test_the_best_half_survives_and_parents_may_mutate(monkeypatch):
    """The population is the best half, its children, and all of them exposed to mutation; no loss is taken twice."""
    seen, mutations, populations = [], [], []

    def losses(tokens):
        seen.append(tokens.clone())
        return distance(tokens)

    def distance(tokens):
        return (tokens - 7).abs().float().sum(1)

    def spied(rows, *rest):
        mutations.append(rows.clone())
        populations.append(real(rows, *rest))
        return populations[-1]

    real = genetic.mutated
    monkeypatch.setattr(genetic, "mutated", spied)
    found = evolve(losses, Genes(20, 30, 3, 0.5, 0.25), 40, 0, "x", {})
    assert len(populations) == 29
    assert len(seen[0]) == len(seen[0].unique(dim=0))
    for before, exposed in zip(populations, mutations[1:], strict=False):
        order = distance(before).argsort(stable=True)[:10]
        assert torch.equal(exposed[:10], before[order])  # the parents are among those that may mutate
        assert len(exposed) > 10
    for exposed, population, computed in zip(mutations[1:], populations[1:], seen[2:], strict=False):
        new = {tuple(row) for row in population.tolist()} - {tuple(row) for row in exposed[:10].tolist()}
        assert {tuple(row) for row in computed.tolist()} == new
        assert len(computed) == len(new)
    assert torch.equal(found.losses, distance(found.tokens))
    assert found.losses.tolist() == sorted(found.losses.tolist())
    assert found.history[-1] == float(found.losses[0]) < found.history[0]
    assert found.evaluated == sum(map(len, seen)) < sum(map(len, populations))


def test_one_batch_or_one_by_one_is_the_same(tiny):
    found = [RingABell(at_once=n, keep=False, **SMALL)(Target(tiny), DOG, LIKE) for n in (1, 5, 256)]
    assert len({one.queries for one in found}) == 1
    assert found[0].scores == pytest.approx(found[2].scores, rel=1e-5)


def test_prompts_are_kept_for_every_model_with_the_encoder(tiny, own_home, attack_on, monkeypatch):
    attack = RingABell(**SMALL)
    first = attack(Target(tiny), DOG, [LIKE, Query("a dog", steps=1)])
    assert first.about["reused"] == 0
    monkeypatch.setattr(genetic, "crossed", None)
    monkeypatch.setattr("efface.attacks.ring_a_bell.evolve", None)  # nothing is searched again
    other = attack_on(tiny, None)
    assert other.edited.id != tiny.id
    again = attack(other, DOG, [LIKE, Query("a dog", steps=1)])
    assert again.about["reused"] == 2
    assert (again.queries, again.scores, again.cost) == (first.queries, first.scores, first.cost)
    assert again.replay(other.edited).shape == (2, 3, 16, 16)
    for fields in ({"eta": 1.0}, {"length": 3}, {"forbid_name": True}, {"mutation": 0.5}):
        with pytest.raises(TypeError):
            RingABell(**{**SMALL, **fields})(Target(tiny), DOG, LIKE)
    with pytest.raises(TypeError):
        attack(Target(tiny), "wolf", LIKE)
    with pytest.raises(TypeError):
        attack(Target(tiny), DOG, LIKE, seed=1)
    path = next(own_home.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TypeError):  # a damaged one is searched again
        attack(Target(tiny), DOG, [LIKE, Query("a dog", steps=1)])


def test_the_encoder_of_the_original_is_asked(tiny):
    """An edit of the text encoder does not change what a black-box attacker computes."""
    encoder = tiny.part("text_encoder")
    assert isinstance(encoder, CLIPTextModel)
    names = [name for name in tiny.weights("text_encoder") if name.endswith("token_embedding.weight")]
    changed = {name: tiny.weights("text_encoder")[name].detach().roll(1, 0) for name in names}
    edited = tiny.edited(changed, id="embedding")
    attack = RingABell(**SMALL, keep=False)
    one, two = attack(Target(edited, None, tiny), DOG, LIKE), attack(Target(tiny), DOG, LIKE)
    assert one.queries == two.queries
    assert attack(Target(edited), DOG, LIKE).queries != two.queries


def test_a_killed_search_resumes(tiny, tmp_path, monkeypatch):
    attack = RingABell(keep=False, **SMALL)
    whole = attack(Target(tiny), DOG, LIKE)
    monkeypatch.setattr(genetic, "SAVED", 2)
    real, calls = genetic.mutated, []

    def tired(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(genetic, "mutated", tired)
    with checkpoints(tmp_path), pytest.raises(KeyboardInterrupt):
        attack(Target(tiny), DOG, LIKE)
    with checkpoints(tmp_path):
        again = attack(Target(tiny), DOG, LIKE)
    assert len(calls) == 4 + 2
    assert (again.queries, again.scores, again.about) == (whole.queries, whole.scores, whole.about)


def test_fragments_give_a_context_when_the_text_is_not_typable(tiny):
    found = RingABell(fragments=True, keep=False, **SMALL)(Target(tiny), DOG, LIKE)
    (query,), (typable,) = found.queries, found.about["retokenises"]
    assert (query.context is None) == typable
    assert not typable


def test_pairs_and_direction(tiny, tiny_xl):
    given = pairs(DOG, ["a dog", "red dog"], ["a", "red"])
    for model in (tiny, tiny_xl):
        found = direction(model, given)
        shown, absent = model.encode(["a dog", "red dog"]), model.encode(["a", "red"])
        torch.testing.assert_close(found.tokens[0], (shown.tokens - absent.tokens).mean(0))
        if shown.pooled is not None:
            torch.testing.assert_close(found.pooled[0], (shown.pooled - absent.pooled).mean(0))
    style = pairs(Concept("neon", kind="style"))
    assert len(style.shown) == len(style.absent) >= 3
    assert all("neon" in one for one in style.shown)
    assert not any("neon" in one for one in style.absent)
    with pytest.raises(BadInput, match="reads prompts with the concept as those without"):
        direction(tiny, pairs(DOG, ["A DOG"], ["a dog"]))


def test_bad_input(tiny, lamp):
    with pytest.raises(BadInput, match="come in pairs, got 2 and 1"):
        RingABell(prompts_with=("a dog", "dog"), prompts_without=("a",))
    with pytest.raises(BadInput, match="a prompt with the concept is empty"):
        RingABell(prompts_with=(" ",), prompts_without=("a",))
    with pytest.raises(BadInput, match="are the same"):
        RingABell(prompts_with=("a",), prompts_without=("a",))
    with pytest.raises(BadInput, match="prompt of 16 tokens does not fit: the text encoder reads 14"):
        RingABell()(Target(tiny), DOG, LIKE)
    with pytest.raises(BadInput, match="no text encoder"):
        RingABell()(Target(lamp.model), "0", LIKE)
    with pytest.raises(BadInput, match="population must be from 2"):
        RingABell(population=1)


def test_published_settings():
    paper = RingABell.preset("paper")
    assert (paper.population, paper.generations, paper.mutation, paper.crossover) == (200, 3000, 0.25, 0.5)
    assert (paper.length, paper.eta, paper.by, paper.fragments) == (16, 3.0, "genetic", True)
    assert json.dumps(RingABell.PRESETS)
