"""UCE's debiasing: one step against the formula, and the loop against a judge whose verdicts are known."""

import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.judge import Judge, Profile
from efface.methods import uce_debias
from efface.methods.uce_debias import Debias, first_attribute, kind_of
from efface.models.model import Model

ATTRIBUTES = ("neon", "red sketch")
EYE = torch.eye(32, dtype=torch.float64)


def rows(model, *texts):
    return [v.double() for v in model.encode(texts).tokens]


def word(model, text):
    """Return the row of a text's last word, counted from the tokenizer's own ids."""
    return rows(model, text)[0][len(model.part("tokenizer")(text).input_ids) - 2]


def assert_is(model, edit, c, g, k=None, p=1.0):
    k = c[:0] if k is None else k
    found = edit.dense(model)
    assert found.keys() == set(model.text_weights())
    for name, delta in found.items():
        weight = model.weights()[name].detach().double()
        top = 0.5 * weight + weight @ (g.T @ c + p * k.T @ k)
        expected = top @ torch.linalg.inv(0.5 * EYE + c.T @ c + p * k.T @ k) - weight
        assert (delta - expected).norm() < 1e-5 * expected.norm()


def test_a_step_is_the_formula(tiny):
    """v* = W (c + Σ α a) on the last words, others kept: uce_sd_debias.py with one set of direction scales."""
    edit = Debias(attributes=ATTRIBUTES, weights=(0.3, -0.2))(tiny, ["church", "blue house"], preserve=["dog"])
    c = torch.stack([word(tiny, "church"), word(tiny, "blue house")])
    neon, sketch = (word(tiny, text) for text in ATTRIBUTES)
    assert_is(tiny, edit, c, c + 0.3 * neon - 0.2 * sketch, word(tiny, "dog")[None])
    assert edit.meta["closed_form"]["weights"] == {"church": [0.3, -0.2], "blue house": [0.3, -0.2]}


def test_the_tail_pairs_last_words_and_what_follows(tiny):
    edit = Debias(attributes=ATTRIBUTES, weights=(0.3, -0.2), rows="tail", preserve_empty=True, preserve_rows="all",
                  preserve_scale=0.1)(tiny, ["church"])  # fmt: skip
    church, neon, sketch, empty = rows(tiny, "church", *ATTRIBUTES, "")
    c = church[1:15]  # the last words of the others, of two tokens, are at 2
    assert_is(tiny, edit, c, c + 0.3 * neon[2:] - 0.2 * sketch[2:], empty, 0.1)


class Counts(Judge):
    """Judge that sees "neon" in a given share of each concept's images, round by round."""

    classes = ("neon", "dog", "red sketch")

    def __init__(self, *rounds, images=10):
        self.rounds, self.each = iter(rounds), images

    @property
    def profile(self):
        return Profile(evaluator="told")

    def objects(self, images):
        found = torch.zeros(len(images), 3)
        found[:, 1] = 2.0  # what is no attribute does not count
        for i, share in enumerate(next(self.rounds)):
            shown = torch.arange(self.each) < share * self.each
            found[i * self.each : (i + 1) * self.each, 0], found[i * self.each : (i + 1) * self.each, 2] = shown, ~shown
        return found


def test_the_loop_moves_by_the_missing_shares_and_stops_when_they_are_right(tiny, monkeypatch):
    judge, asked = Counts((1.0, 0.7), (0.9, 0.6), (0.5, 0.9), (0.5, 0.5)), []
    monkeypatch.setattr(uce_debias, "judge_of", lambda *names: (asked.append(names), judge)[1])
    seeds: list[int] = []

    def images(self, queries, *_):
        seeds.append(queries[0].seed)
        return torch.zeros(len(queries), 3, 4, 4)

    monkeypatch.setattr(Model, "generate", images)
    method = Debias(attributes=ATTRIBUTES, step=0.5, steps=1, judge="nudenet", tolerance=0.15)
    edit = method(tiny, ["church", "dog"], seed=100)
    report = edit.meta["closed_form"]
    assert asked == [(tiny.name, "nudenet")]
    assert seeds == [100, 110, 120, 130]
    first = [[1.0, 0.0], [0.7, 0.3]]
    assert report["shares"] == [first, [[0.9, 0.1], [0.6, 0.4]], [[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]]]
    church = 0.5 * (-0.5 - 0.4)
    dog = 0.5 * (-0.2 + 0.0 - 0.4)  # the second round is within the tolerance and moves nothing
    assert report["weights"]["church"] == pytest.approx([church, -church])
    assert report["weights"]["dog"] == pytest.approx([dog, -dog])
    c, (neon, sketch) = torch.stack([word(tiny, "church"), word(tiny, "dog")]), (word(tiny, t) for t in ATTRIBUTES)
    alpha = torch.tensor([[church], [dog]], dtype=torch.float64)
    assert_is(tiny, edit, c, c + alpha * neon - alpha * sketch)


def test_the_first_round_looks_at_the_untouched_model_and_rounds_are_limited(tiny, monkeypatch):
    judge = Counts(*[(1.0,)] * 3, images=2)
    monkeypatch.setattr(uce_debias, "judge_of", lambda *_: judge)
    pictures = []
    monkeypatch.setattr(judge, "objects", lambda x, f=judge.objects: (pictures.append(x), f(x))[1])
    method = Debias(attributes=ATTRIBUTES, rounds=3, images=2, steps=2, shares=(0.25, 0.75), tolerance=0.3)
    edit = method(tiny, ["church"], seed=7)
    assert edit.meta["closed_form"]["weights"]["church"] == pytest.approx([-2.25, 2.25])
    queries = [uce_debias.Query("church", 7 + i, 2, 7.5) for i in range(2)]
    torch.testing.assert_close(pictures[0], tiny.generate(queries), rtol=0, atol=1e-4)
    first = Debias(attributes=ATTRIBUTES, weights=(-0.75, 0.75))(tiny, ["church"])
    queries = [uce_debias.Query("church", 9 + i, 2, 7.5) for i in range(2)]
    with first.applied(tiny) as edited:  # the second round looks at the edit of the first
        torch.testing.assert_close(pictures[1], edited.generate(queries), rtol=0, atol=1e-4)
    assert (pictures[1] - tiny.generate(queries)).abs().max() > 1e-3


def test_attributes_are_told_apart_by_names_or_by_the_judges_clip():
    class Reads(Counts):
        reads_text = True
        styles = ("plain", "ink")

        def clip_score(self, images, texts):
            return images.mean((1, 2, 3)) * (1 if texts[0] == "bright" else -1)

    judge = Reads((0.5,), images=2)
    assert kind_of(judge, ("neon", "dog")) == "object"
    assert kind_of(judge, ("ink", "plain")) == "style"
    assert kind_of(judge, ("dark", "bright")) == "text"
    assert first_attribute(judge, ("dark", "bright"), torch.rand(3, 3, 4, 4)).tolist() == [1, 1, 1]
    assert first_attribute(judge, ("red sketch", "neon"), torch.rand(2, 3, 4, 4)).tolist() == [1, 0]
    with pytest.raises(UnknownName, match="attribute of the judge 'dark'"):
        kind_of(Counts(), ("neon", "dark"))


@pytest.mark.parametrize(
    "fields",
    [
        {"attributes": ("male",)},
        {"attributes": ("male", "male")},
        {"weights": (1.0,)},
        {"weights": (1.0, float("nan"))},
        {"shares": (0.5, 0.6)},
        {"shares": (1.5, -0.5)},
        {"rounds": 0},
        {"step": 0.0},
        {"weights": (1.0, 1.0), "judge": "nudenet"},
        {"preserve_scale": -1.0},
    ],
)
def test_bad_fields(fields):
    with pytest.raises(BadInput):
        Debias(**fields)


def test_without_weights_a_judge_is_needed(tiny):
    with pytest.raises(BadInput, match="no judge for"):
        Debias()(tiny, [Concept("church")])
