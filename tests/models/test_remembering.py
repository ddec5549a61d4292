"""A model that remembers its images: the same images, each generated once, and none of another model's."""

from dataclasses import replace

import pytest
import torch

from efface.concept import Concept
from efface.edits.guard import Guard
from efface.methods.negative import NegativePrompt
from efface.models import remembering
from efface.models.model import Model
from efface.models.remembering import Remembering
from efface.query import Query

A, B, C = (Query(text, seed, steps=2) for text, seed in (("a dog", 0), ("a dog", 1), ("a red fox", 0)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    made, real = [], Model.generate

    def counted(self: Model, queries, *more):
        made.extend(queries)
        return real(self, queries, *more)

    monkeypatch.setattr(Model, "generate", counted)
    return made


def test_each_image_is_made_once_and_in_order(tiny: Model, asked: list[Query]) -> None:
    model = Remembering.of(tiny)
    first = model.generate([A, B, A])
    assert asked == [A, B]
    again = model.generate([C, B, A])
    assert asked == [A, B, C]
    assert torch.equal(again[1:], first[1:])
    assert model.generate([]).shape == (0, 3, 0, 0)
    torch.testing.assert_close(again, tiny.generate([C, B, A]))
    assert model.id == tiny.id


def test_models_made_from_it_forget(tiny: Model, asked: list[Query]) -> None:
    model = Remembering.of(tiny)
    plain = model.generate([A])
    for other in (
        model.guarded(Guard(NegativePrompt(), (Concept("dog"),))),
        model.edited({name: w.detach() * 1.2 for name, w in tiny.weights().items()}, id="moved"),
        replace(model, guards=(Guard(NegativePrompt(), (Concept("dog"),)),)),
    ):
        assert (other.generate([replace(A, guidance=3.0)]) - plain).abs().max() > 1e-3
        assert (other.generate([A]) - plain).abs().max() > 1e-4
    assert len(asked) == 1 + 3 * 2


def test_memory_has_a_limit(tiny: Model, asked: list[Query], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "LIMIT", 3 * 16 * 16 * 4)
    model = Remembering.of(tiny)
    first = model.generate([A, B])
    assert torch.equal(model.generate([A])[0], first[0])
    torch.testing.assert_close(model.generate([B])[0], first[1])
    assert asked == [A, B, B]
