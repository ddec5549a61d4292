"""The Erasure Score, and the strength that is chosen by it."""

from dataclasses import replace

import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.erasure_score import ErasureScore, erasure_score
from efface.evaluation.strength import Strengths, Tried, choose_strength
from efface.judge import Judge, Profile
from efface.query import Query

CHURCH = Concept("church")
NAMED = Query("a church", steps=1, guidance=1.0)


class Red(Judge):
    """A CLIP that compares an image's redness with the length of a text."""

    reads_text, profile = True, Profile(evaluator="red")

    def objects(self, images):
        return torch.ones(len(images), 1)

    def clip_score(self, images, texts):
        return images[:, 0].mean((1, 2)) * torch.tensor([float(len(text)) for text in texts])


def test_it_is_the_largest_similarity_with_the_name(tiny):
    context = tiny.encode(["a dog"])
    learned = [replace(NAMED, seed=seed, context=context, prompt="<*>") for seed in (1, 2, 3)]
    found = erasure_score(tiny, Red(), CHURCH, [NAMED], learned)
    red = [6 * float(image[0].mean()) for image in tiny.generate([NAMED, *learned])]
    assert found.named == pytest.approx(red[:1], rel=1e-4)
    assert found.learned == pytest.approx(red[1:], rel=1e-4)
    assert found.value == max(*found.named, *found.learned) == pytest.approx(max(red), rel=1e-4)
    assert (found.mean, found.n) == (pytest.approx(sum(red) / 4, rel=1e-4), 4)
    assert (found.text, found.judge.evaluator) == ("church", "red")
    assert found.first(1).value == max(found.named[0], found.learned[0])
    assert (found.first(0).value, found.first(0).n, found.first(0).text) == (found.named[0], 1, "church")
    other = erasure_score(tiny, Red(), CHURCH, [NAMED], text="a longer text")
    assert other.named[0] == pytest.approx(red[0] * 13 / 6, rel=1e-4)
    for count in (-1, 4):
        with pytest.raises(BadInput, match=f"the first {count} embeddings of 3"):
            found.first(count)


def test_bad_scores(tiny):
    class Blind(Red):
        reads_text = False

    with pytest.raises(BadInput, match="the judge red has no CLIP"):
        erasure_score(tiny, Blind(), CHURCH, [NAMED])
    with pytest.raises(BadInput, match="a query that names the concept"):
        erasure_score(tiny, Red(), CHURCH, [], [NAMED])
    with pytest.raises(BadInput, match="an image of the concept's name"):
        ErasureScore(())


def choose(scores, controls=None, **options):
    """Choose among edits, whose strength is read from a weight, with scores and controls as functions of it."""
    unit, made = Edit(delta={"unet.weight": torch.ones(1)}), []

    def score(edit):
        made.append(float(edit.delta["unet.weight"]))
        return ErasureScore((scores(made[-1]),))

    control = controls and (lambda edit: controls(float(edit.delta["unet.weight"])))
    found = choose_strength(lambda s: s * unit, score=score, control=control, **options)
    return found, made


def test_the_smallest_strength_below():
    found, made = choose(lambda s: 1 / s, lambda s: 3 - s, strengths=[4, 1, 2, 2, 3], below=0.4)
    assert made == [1, 2, 3, 4]
    assert found.chosen == Tried(3.0, ErasureScore((1 / 3,)), 0.0)
    assert [one.to_json()["score"] for one in found.tried] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert found.tried[0].to_json() == {"strength": 1, "score": 1.0, "mean": 1.0, "n": 1, "control": 2.0}
    assert found.why == "strength 3: the smallest of 4 with a score below 0.4"
    found, made = choose(lambda s: 1 / s, strengths=[1, 2, 3, 4], below=0.4, stop=True)
    assert made == [1, 2, 3]
    assert found.tried[0].control is None


def test_below_is_strict_and_the_score_need_not_fall():
    bumpy = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.1}.__getitem__
    assert choose(bumpy, strengths=[1, 2, 3, 4], below=0.3)[0].chosen.strength == 2
    assert choose(bumpy, strengths=[1, 2, 3, 4], below=0.2)[0].chosen.strength == 4
    found = choose(bumpy, strengths=[1, 2, 3, 4], below=0.1)[0]
    assert found.chosen is None
    assert found.why == "no strength: the lowest score of 4 is 0.1 at 4, and has to be below 0.1"


def test_the_control_has_to_be_reached():
    options = {"strengths": [1, 2, 3], "below": 0.6}
    found = choose(lambda s: 1 / s, lambda s: s / 10, least=0.3, **options)[0]
    assert found.chosen.strength == 3
    found = choose(lambda s: 1 / s, lambda s: -s, least=-2.0, **options)[0]
    assert found.chosen.strength == 2
    found = choose(lambda s: 1 / s, lambda s: 2 - s, least=0.5, **options)[0]
    assert found.chosen is None
    assert found.why == (
        "no strength: of 3, 2 have a score below 0.6, but a control of at most 0, which has to be at least 0.5"
    )


def test_bisection_halves_the_gap_below_the_chosen():
    """The score is below 0.4 from 2.5 on."""
    found, made = choose(lambda s: 1 / s, strengths=[2, 4], below=0.4, bisect=3)
    assert made == [2, 4, 3, 2.5, 2.75]
    assert found.chosen.strength == 2.75
    assert [one.strength for one in found.tried] == [2, 2.5, 2.75, 3, 4]
    assert choose(lambda s: 1 / s, strengths=[4], below=0.4, bisect=1)[1] == [4, 2]
    assert choose(lambda s: 1.0, strengths=[4], below=0.4, bisect=5)[1] == [4]


def test_fewer_embeddings_choose_a_smaller_strength():
    """From the same images, the study of figure 12."""
    rows = [Tried(s, ErasureScore((0.5 / s,), (0.6 / s, 0.9 / s))) for s in (1.0, 2.0, 3.0, 4.0)]
    found = Strengths(tuple(rows), 0.24)
    assert [found.first(count).chosen.strength for count in (0, 1, 2)] == [3, 3, 4]
    assert found.first(1).tried[0].score.n == 2
    assert found.chosen == found.first(2).chosen


def test_bad_choices():
    for strengths in ([], [0], [-1.0], [1, float("inf")], [float("nan")]):
        with pytest.raises(BadInput, match="strengths are finite numbers above 0"):
            choose(lambda s: s, strengths=strengths, below=0.2)
    with pytest.raises(BadInput, match="below is a finite number"):
        choose(lambda s: s, strengths=[1], below=float("nan"))
    with pytest.raises(BadInput, match="bisect at least 0"):
        choose(lambda s: s, strengths=[1], below=0.2, bisect=-1)
    with pytest.raises(BadInput, match=r"a control of at least 0.5 needs a control"):
        choose(lambda s: s, strengths=[1], below=0.2, least=0.5)
