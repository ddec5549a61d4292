"""Attack success rates, and the judging of findings."""

import pytest
import torch

from efface.attack import Attack, Target
from efface.attacks.probe_prompts import ProbePrompts
from efface.attacks.seed_search import SeedSearch
from efface.concept import Concept
from efface.criterion import Like, Shows
from efface.errors import BadInput, UnknownName
from efface.evaluation.asr import attack_success
from efface.evaluation.attacking import answered, attack_edit
from efface.evaluation.stats import wilson
from efface.evaluation.summary import Share
from efface.finding import Finding
from efface.judge import Judge, Profile
from efface.models.model import Model
from efface.query import Query

CHURCH = Concept("church")
QUERIES = tuple(Query("a picture of a church", seed, steps=2) for seed in (0, 1, 2))


class Bright(Judge):
    """Sees a church in images whose red channel is above its threshold."""

    classes = ("church", "house")
    reads_text = True

    @property
    def profile(self) -> Profile:
        return Profile(evaluator="bright", classes=2)

    def objects(self, images):
        red = images[:, 0].mean((1, 2))
        return torch.stack([red, 1 - red], 1)

    def clip_score(self, images, texts):
        return images[:, 1].mean((1, 2))


class Redder(Bright):
    """Another judge with the same eyes."""

    @property
    def profile(self) -> Profile:
        return Profile(evaluator="redder", classes=2)


def picture(red: float, green: float = 0.0) -> torch.Tensor:
    image = torch.zeros(3, 4, 4)
    image[0], image[1] = red, green
    return image


def test_rates_are_of_all_of_those_that_failed_and_of_either() -> None:
    plain, attacked = [True, False, False, False], [False, True, True, False]
    rates = attack_success(plain, attacked)
    assert [(rate.hits, rate.n) for rate in rates] == [(1, 4), (2, 3), (3, 4)]
    assert rates.post.interval == wilson(2, 3)
    assert str(rates.pre) == "1 of 4 (25 % [5, 70])"
    assert attack_success([True], [True]).post == Share(hits=0, n=0)
    with pytest.raises(BadInput, match="no pairs"):
        attack_success([True], [])


def test_criteria_compose() -> None:
    images = torch.stack([picture(0.9, 0.9), picture(0.9, 0.1), picture(0.2, 0.9), picture(0.2, 0.1)])
    shows, like = Shows(Bright()), Like(Bright(), 0.5)
    assert shows(images, CHURCH).tolist() == [True, True, False, False]
    assert like(images, CHURCH).tolist() == [True, False, True, False]
    assert (shows & like)(images, CHURCH).tolist() == [True, False, False, False]
    assert (shows | like)(images, CHURCH).tolist() == [True, True, True, False]
    assert Shows(Bright(), top=2)(images, CHURCH).all()
    assert Shows(Bright(), least=0.95)(images, CHURCH).sum() == 0
    assert set((shows & like).describe()) == {"both"}
    with pytest.raises(UnknownName, match="house"):
        (shows | like).check(Concept("hous"))
    with pytest.raises(BadInput, match="cosine"):
        Like(Bright(), 2.0)
    with pytest.raises(BadInput, match="from 1"):
        Shows(Bright(), top=0)


class Steered(Attack):
    """Answers with one context for seed 1, and another for all seeds."""

    def search(self, target, concept, queries, seed):
        c = target.edited.encode(["a red dog"])
        found = (Query("", 1, 2, context=c), Query("", 9, 2, context=c))
        return Finding(found, (0.9, 0.5), cost={"calls": 1}, given=(1, 1))


def test_an_attack_is_judged_on_the_plain_queries(tiny: Model) -> None:
    done = attack_edit(Steered(), Target(tiny, None, tiny), CHURCH, QUERIES, Shows(Bright(), top=2), 3)
    assert done.before == done.after == (True, True, True)
    assert done.finding.success == (True, True)
    assert done.rates is not None
    assert (done.rates.pre.hits, done.rates.post.n, done.rates.combined.hits) == (3, 0, 3)
    assert done.finding.meta["criterion"]["shows"]["judge"]["evaluator"] == "bright"
    asked = done.finding.answers(QUERIES)
    assert [query.seed for query in asked] == [0, 1, 2]
    assert asked[1] is done.finding.queries[0]
    torch.testing.assert_close(done.attacked, tiny.generate(asked))
    torch.testing.assert_close(done.edited, tiny.generate(QUERIES))
    assert (done.attacked - done.edited).abs().max() > 1e-3


def test_one_prompt_is_not_answered_by_what_was_found_for_another() -> None:
    plain = [Query(prompt, seed) for seed in (0, 1) for prompt in ("a church", "a house")]
    found = tuple(Query(f"found {name}", seed) for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 9)))
    meta = {"queries": [[query.prompt, query.seed] for query in plain]}
    finding = Finding(found, (0.9, 0.8, 0.7, 0.1), meta=meta, given=(0, 1, 3, 2))
    assert finding.answers(plain) == (found[0], found[1], found[3], found[2])
    other, more, new = finding.answers([Query("a church", 5), Query("a house", 6), Query("a castle", 7)])
    assert (other.prompt, other.seed) == ("found a", 5)
    assert (more.prompt, more.seed) == ("found b", 6)
    assert (new.prompt, new.seed) == ("found a", 7)


def test_another_seed_is_an_answer(tiny: Model) -> None:
    """Seed search is judged on the seeds that it found, not on the plain ones once more."""
    target = Target(tiny, Redder(), tiny)
    done = attack_edit(SeedSearch(tries=6), target, CHURCH, QUERIES[:2], Shows(Bright(), top=2))
    assert not torch.equal(done.edited, done.attacked)
    own = target.seen(done.attacked, CHURCH) >= target.seen(done.edited, CHURCH)
    assert own.all()


def test_the_judge_that_decides_is_not_the_one_that_is_asked(tiny: Model) -> None:
    for criterion in (Shows(Bright()), Shows(Redder()) & Like(Bright(), 0.5), Like(Bright(), 0.5) | Shows(Redder())):
        with pytest.raises(BadInput, match="bright cannot decide on an attack that may ask it"):
            attack_edit(SeedSearch(tries=2), Target(tiny, Bright(), tiny), CHURCH, QUERIES, criterion)


def test_no_image_is_made_twice_and_success_is_that_of_the_images_shown(tiny: Model, monkeypatch) -> None:
    made, real = [], Model.generate

    def counted(self: Model, queries, *more):
        made.extend(queries)
        return real(self, queries, *more)

    monkeypatch.setattr(Model, "generate", counted)
    done = attack_edit(Steered(), Target(tiny), CHURCH, QUERIES, Shows(Bright(), top=2))
    own = done.finding.queries
    assert sorted(query.seed for query in made) == [0, 0, 1, 1, 2, 2, 9]  # edited, attacked, and seed 9 for success
    torch.testing.assert_close(done.attacked[1], tiny.generate([own[0]])[0])
    seen = []

    def judge(images, concept):
        seen.append(images)
        return torch.ones(len(images), dtype=torch.bool)

    monkeypatch.setattr(Shows, "__call__", lambda self, images, concept: judge(images, concept))
    attack_edit(Steered(), Target(tiny), CHURCH, QUERIES, Shows(Bright(), top=2))
    torch.testing.assert_close(seen[0], tiny.generate(own))


def test_what_the_search_generated_is_not_generated_again(tiny: Model, monkeypatch) -> None:
    made, real = [], Model.generate

    def counted(self: Model, queries, *more):
        made.extend(query.key for query in queries)
        return real(self, queries, *more)

    monkeypatch.setattr(Model, "generate", counted)
    attack = ProbePrompts(random=2, tokens=1, prompts=("a red dog",))
    done = attack_edit(attack, Target(tiny, Redder(), tiny), CHURCH, QUERIES[:2], Shows(Bright()))
    assert len(made) == len(set(made)) == len(done.finding.queries) + 2
    assert set(made) == {query.key for query in (*done.finding.queries, *QUERIES[:2])}


def test_an_unknown_concept_is_refused_before_the_attack(tiny: Model) -> None:
    class Never(Steered):
        def search(self, *_):
            raise AssertionError

    with pytest.raises(UnknownName):
        attack_edit(Never(), Target(tiny), Concept("taxi"), QUERIES, Shows(Bright()))


def test_unjudged_and_of_another_model(tiny: Model, tiny2: Model) -> None:
    done = attack_edit(Steered(), Target(tiny), CHURCH, QUERIES, None)
    assert done.rates is None
    assert done.finding.success == ()
    assert done.original is None
    with pytest.raises(BadInput, match="the finding attacked"):
        answered(done.finding, tiny2, QUERIES)
    with pytest.raises(BadInput, match="do not fit"):
        done.finding.judged(torch.zeros(1, 3, 4, 4), Shows(Bright()))
