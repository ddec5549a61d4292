"""The vocabulary of token searches, their frames and relaxations."""

import pytest
import torch

from efface.attacks.search import simplex
from efface.attacks.search.frames import alone, between, check_fits, encode_frames, encode_ids, prefix
from efface.attacks.search.relaxations import Nearest, Simplex
from efface.attacks.search.vocabulary import Vocabulary, tokenizers
from efface.errors import BadInput
from efface.models.model import Model
from efface.models.token_vectors import ids_of, table
from efface.query import Query
from efface.training.loop import generator


def by_sorting(row):
    """Project onto the simplex by the algorithm that sorts (Duchi et al. 2008)."""
    ordered = row.sort(descending=True)[0]
    over = (ordered.cumsum(0) - 1) / torch.arange(1, len(row) + 1)
    last = (ordered > over).nonzero()[-1]
    return (row - over[last]).clamp(min=0)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_projection_onto_the_simplex(spread):
    rows = torch.randn(6, 50, generator=generator(0)) * spread
    found = simplex.project(rows)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, torch.stack([by_sorting(row) for row in rows]), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(simplex.project(found), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_every_sequence_of_whole_tokens_is_tokenised_to_itself(name, request):
    model = request.getfixturevalue(name)
    vocabulary = Vocabulary.of(model)
    special = {i for one in tokenizers(model) for i in one.all_special_ids}
    assert special
    assert not special & set(vocabulary.ids.tolist())
    assert set(ids_of(model, "dog wolf a")) <= set(vocabulary.ids.tolist())
    for row in vocabulary.random((40, 14), generator(1)):
        ids = vocabulary.ids[row].tolist()
        assert vocabulary.retokenises(ids)
        asked = vocabulary.query(Query("x", seed=3), ids)
        assert asked.query.context is None
        assert ids_of(model, asked.query.prompt) == ids


def test_mini_s_whole_tokens_too():
    model = Model.load("mini")
    vocabulary = Vocabulary.of(model)
    assert all(
        vocabulary.retokenises(vocabulary.ids[row].tolist()) for row in vocabulary.random((60, 20), generator(1))
    )


def test_fragments_are_allowed_on_request_and_what_is_not_typable_is_said(tiny):
    whole, all_of_them = Vocabulary.of(tiny), Vocabulary.of(tiny, fragments=True)
    fragments = set(all_of_them.ids.tolist()) - set(whole.ids.tolist())
    pieces = tiny.part("tokenizer").convert_ids_to_tokens(sorted(fragments))
    assert any(not piece.endswith("</w>") for piece in pieces)
    assert not set(tiny.part("tokenizer").all_special_ids) & set(all_of_them.ids.tolist())
    ids = [*ids_of(tiny, "c h"), 70]
    ids[0] = tiny.part("tokenizer").convert_tokens_to_ids("c")
    asked = all_of_them.query(Query("a church", steps=2, latents=torch.zeros(1, 4, 8, 8), start=1), ids)
    assert not asked.retokenises
    assert (asked.query.latents, asked.query.start) == (None, 0)
    expected = encode_ids(tiny, table(tiny), torch.tensor([ids]))
    torch.testing.assert_close(asked.query.context.tokens, expected.tokens)
    assert tiny.generate([asked.query]).shape == (1, 3, 16, 16)


def test_the_concept_s_name_can_be_forbidden(tiny):
    vocabulary = Vocabulary.of(tiny, forbid=("wolf dog",))
    assert not {*ids_of(tiny, "dog"), *ids_of(tiny, "wolf")} & set(vocabulary.ids.tolist())
    assert len(vocabulary) == len(Vocabulary.of(tiny)) - 2


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_ids_are_encoded_as_their_text(name, request):
    model = request.getfixturevalue(name)
    texts = ["a red fox", "a dog wolf"]
    ids = torch.tensor([ids_of(model, text) for text in texts])
    by_ids, by_text = encode_ids(model, table(model), ids), model.encode(texts)
    torch.testing.assert_close(by_ids.tokens, by_text.tokens)
    if by_text.pooled is not None:
        torch.testing.assert_close(by_ids.pooled, by_text.pooled)


def test_frames(tiny):
    ids = ids_of(tiny, "a photo of a red dog")
    assert prefix(ids, 2).filled([7, 8]) == (7, 8, *ids)
    assert alone(3).filled([7, 8, 9]) == (7, 8, 9)
    assert between(ids, 3).filled([7, 8, 9]) == (7, *ids[:3], 8, *ids[3:], 9)
    assert between(ids[:5], 3).filled([7, 8]) == (7, *ids[:3], 8, *ids[3:5])
    assert between(ids[:2], 3).filled([7]) == (7, *ids[:2])
    wolf, dog = ids_of(tiny, "wolf dog")
    vectors = table(tiny)[torch.tensor([[wolf], [dog]])]
    frames = [between(ids_of(tiny, "a red"), 3), between(ids_of(tiny, "the blue"), 3)]
    found = encode_frames(tiny, frames, table(tiny), vectors)
    torch.testing.assert_close(found.tokens, tiny.encode(["wolf a red", "dog the blue"]).tokens)
    with pytest.raises(BadInput, match="prompt of 15 tokens does not fit: the text encoder reads 14"):
        check_fits(tiny, alone(15))


def test_nearest_is_by_cosine_and_passes_the_gradient_straight_through(tiny):
    vocabulary = Vocabulary.of(tiny)
    relaxed = Nearest(vocabulary, torch.tensor([[3, 5], [7, 9]]))
    assert relaxed.tokens().tolist() == [[3, 5], [7, 9]]
    with torch.no_grad():
        relaxed.values *= 0.01  # as weight decay does: the direction stays
        relaxed.values[0, 0] = 4 * vocabulary.vectors[11] + 0.5 * vocabulary.vectors[12]
    cosines = torch.nn.functional.cosine_similarity(relaxed.values[0, 0][None], vocabulary.vectors)
    assert relaxed.tokens().tolist() == [[int(cosines.argmax()), 5], [7, 9]]
    found = relaxed.vectors([0, 1], [])
    torch.testing.assert_close(found, vocabulary.vectors[relaxed.tokens()])
    weights = torch.randn(found.shape, generator=generator(0))
    (found * weights).sum().backward()
    torch.testing.assert_close(relaxed.values.grad, weights)


def test_a_distribution_draws_tokens_and_its_gradient_is_clipped(tiny):
    vocabulary = Vocabulary.of(tiny)
    relaxed = Simplex(vocabulary, 2, 3)
    torch.testing.assert_close(relaxed.values.detach().sum(-1), torch.ones(2, 3))
    assert relaxed.values.detach().unique().numel() == 1
    with torch.no_grad():
        relaxed.values[1] = 0
        relaxed.values[1, :, 4] = 1
    found = relaxed.vectors([0, 1], [generator(0), generator(1)])
    torch.testing.assert_close(found[1], vocabulary.vectors[[4, 4, 4]])
    assert not torch.equal(found[0], relaxed.vectors([0], [generator(2)])[0])
    assert torch.equal(found[0].detach(), relaxed.vectors([0], [generator(0)])[0].detach())
    near = torch.cdist(found[0].detach(), vocabulary.vectors).min(1).values
    torch.testing.assert_close(near, torch.zeros(3), atol=1e-4, rtol=0)
    weights = torch.randn(found.shape, generator=generator(0)) * 0.2
    (found * weights).sum().backward()
    expected = (weights @ vocabulary.vectors.mT).clamp(-1, 1)
    torch.testing.assert_close(relaxed.values.grad, expected)
    assert (expected.abs() == 1).any()
    assert (expected.abs() < 1).any()
    with torch.no_grad():
        relaxed.values += torch.randn(relaxed.values.shape, generator=generator(3))
    relaxed.project()
    torch.testing.assert_close(relaxed.values.detach().sum(-1), torch.ones(2, 3), atol=1e-5, rtol=0)
    assert relaxed.tokens().tolist() == relaxed.values.detach().argmax(-1).tolist()


def test_a_model_without_a_text_encoder_is_refused(lamp):
    with pytest.raises(BadInput, match="no text encoder"):
        Vocabulary.of(lamp.model)
