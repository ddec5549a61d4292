import pytest
import torch

from efface.attack import Target
from efface.attacks.probe_prompts import ProbePrompts
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.models.token_vectors import ids_of
from efface.query import Query

DOG = Concept("dog", family="fox", keywords=("wolf", "red", "tree"))
LIKE = [Query("a blue dog", seed=5, steps=1), Query("", seed=6, steps=2)]


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_every_prompt_with_every_query(name, request):
    model = request.getfixturevalue(name)
    found = ProbePrompts(prompts=("un chien",), random=3, tokens=2)(Target(model), DOG, LIKE)
    texts = [query.prompt for query in found.queries]
    words = ["un chien", *(f"a picture of a {word}" for word in ("fox", "wolf", "red", "tree", "wolf red", "red tree"))]
    kinds = ["given", "family", *["keyword"] * 5, *["random"] * 3]
    assert [texts[:7], texts[10:17]] == [words, words] or sorted(texts[:7]) == sorted(words)
    assert sorted(found.about["kinds"]) == sorted(kinds * 2)
    assert [query.seed for query in found.queries] == [5] * 10 + [6] * 10
    for text, kind, query in zip(texts, found.about["kinds"], found.queries, strict=True):
        if kind == "random":
            end = "a blue dog" if query.seed == 5 else DOG.texts[0]
            assert text.endswith(end)
            assert len(ids_of(model, text)) == 2 + len(ids_of(model, end))
    assert found.about["retokenises"] == [True] * 20
    assert len(set(texts[7:10])) == 3
    assert found.replay(model).shape == (20, 3, *[model.family.image_size] * 2)


def test_a_judge_ranks(tiny, eye, attack_on):
    target = attack_on(tiny, eye())
    found = ProbePrompts(random=2, tokens=1)(target, DOG, LIKE)
    seen = target.seen(found.replay(target.edited), DOG)
    torch.testing.assert_close(seen, torch.tensor(found.scores), atol=1e-4, rtol=1e-3)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert len(set(found.scores)) > 4
    assert found.cost["images"] == 16
    assert found.cost["calls"] == 8 * 2 * 1 + 8 * 2 * 3  # PNDM makes three calls of two steps


def test_what_is_tried_can_be_chosen(tiny):
    only = ProbePrompts(keywords=False, family=False, prompts=("pies",), random=0)(Target(tiny), DOG, LIKE[0])
    assert [query.prompt for query in only.queries] == ["pies"]
    assert ProbePrompts(random=0, family=False).texts(Concept("neon", kind="style", keywords=("glow",))) == {
        "art in the style of glow": "keyword"
    }
    seeds = [ProbePrompts(random=1)(Target(tiny), DOG, LIKE[0], seed).queries[-1].prompt for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_bad_input(tiny, eye, lamp):
    with pytest.raises(BadInput, match="nothing to try: wolf has no keywords"):
        ProbePrompts(random=0)(Target(tiny), "wolf", LIKE)
    with pytest.raises(BadInput, match="a prompt to try is empty"):
        ProbePrompts(prompts=("",))
    with pytest.raises(BadInput, match="does not fit: the text encoder reads 14"):
        ProbePrompts(tokens=12)(Target(tiny), DOG, LIKE)
    with pytest.raises(BadInput, match="no text encoder"):
        ProbePrompts()(Target(lamp.model), "0", LIKE)
    with pytest.raises(UnknownName, match="class of the judge 'castle'"):
        ProbePrompts()(Target(tiny, eye()), "castle", LIKE)
