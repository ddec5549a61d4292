"""RECE against algorithm 1 written out on the matrices themselves, epoch by epoch."""

import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods import rece
from efface.methods.closed_form.cache import forget
from efface.methods.rece import RECE
from efface.methods.uce import UCE

CHURCH = Concept("church", anchor="red house")
EYE = torch.eye(32, dtype=torch.float64)


def tail(model, c, g):
    """Pair the rows from the last word of "church" (1) and of "red house" (2) on."""
    return c[1:-1], g[2:]


def edited(old, anchor, c, g, k, ridge, p):
    """Solve eq. 3 on one matrix, around `old`, with the outputs of `anchor` as targets."""
    top = ridge * old + anchor @ (g.T @ c + p * k.T @ k)
    return top @ torch.linalg.inv(ridge * EYE + c.T @ c + p * k.T @ k)


def algorithm(model, epochs, ridge, goals, rows, first, preserve, own_vectors=False):
    """Run algorithm 1 with inverses; return the weights and derived embeddings of every epoch."""
    c, g, *k = (v.double() for v in model.encode(["church", "red house", "", *preserve]).tokens)
    k = torch.cat(k)
    weights = model.weights()
    base = [weights[n].detach().double() for n in model.text_weights()]
    now = [edited(w, w, *tail(model, c, g), k, *first) for w in base]
    derived = []
    for _ in range(epochs):
        normal = ridge * EYE + sum(w.T @ w for w in now)
        adversarial = c @ (torch.linalg.inv(normal) @ sum(w.T @ w0 for w, w0 in zip(now, base, strict=True))).T
        derived.append(adversarial)
        pair = (adversarial, g) if rows == "all" else tail(model, adversarial, g)
        if own_vectors:
            own, target = tail(model, c, g)
            pair = torch.cat([pair[0], own]), torch.cat([pair[1], target if goals == "original" else own])
        now = [edited(w, w0 if goals == "original" else w, *pair, k, 0.1, 0.1) for w, w0 in zip(now, base, strict=True)]
    return dict(zip(model.text_weights(), now, strict=True)), derived


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, (1, 0.1, "original", "tail", (0.1, 0.1))),
        ({"epochs": 4, "derive_ridge": 1e-3}, (4, 1e-3, "original", "tail", (0.1, 0.1))),
        (RECE.PRESETS["repo"], (1, 0.1, "current", "all", (0.5, 1.0))),
        (RECE.PRESETS["repo"] | {"epochs": 3}, (3, 0.1, "current", "all", (0.5, 1.0))),
        ({"epochs": 2, "own_vectors": True}, (2, 0.1, "original", "tail", (0.1, 0.1))),
        (RECE.PRESETS["repo"] | {"epochs": 2, "own_vectors": True}, (2, 0.1, "current", "all", (0.5, 1.0))),
        ({"epochs": 0}, (0, 0.1, "original", "tail", (0.1, 0.1))),
    ],
)
@pytest.mark.parametrize("preserve", [(), ("dog", "a red car", "guitar")])
def test_is_algorithm_1(tiny, fields, settings, preserve):
    edit = RECE(**fields)(tiny, [CHURCH], preserve=preserve)
    weights, derived = algorithm(tiny, *settings, preserve, fields.get("own_vectors", False))
    for name, delta in edit.dense(tiny).items():
        expected = weights[name] - tiny.weights()[name].double()
        assert (delta - expected).norm() < 1e-4 * expected.norm()
    assert list(edit.extra) == [f"derived.{epoch}.church" for epoch in range(len(derived))]
    for found, expected in zip(edit.extra.values(), derived, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_gradient_is_zero_at_every_epoch(tiny):
    """Of eq. 2 with the previous weights in its last term, at the edit of each epoch (float32 factors)."""
    c, g, k = (v.double() for v in tiny.encode(["church", "red house", ""]).tokens)
    base = tiny.weights()[tiny.text_weights()[0]].detach().double()
    now = base + UCE(ridge=0.1, preserve_scale=0.1)(tiny, [CHURCH]).maps[0].delta(base)
    for epoch in range(3):
        edit = RECE(epochs=epoch + 1)(tiny, [CHURCH])
        c, goal = tail(tiny, edit.extra[f"derived.{epoch}.church"].double(), g)
        new = (base + edit.maps[0].delta(base)).requires_grad_()
        loss = (c @ new.T - goal @ base.T).square().sum() + 0.1 * (k @ new.T - k @ base.T).square().sum()
        loss = loss + 0.1 * (new - now).square().sum()
        (gradient,) = torch.autograd.grad(loss, new)
        assert gradient.norm() < 1e-4 * (c @ now.T - goal @ base.T).norm() * c.norm()
        now = new.detach()


def test_derived_embedding_brings_the_concept_back(tiny):
    """Eq. 5: W_new c' = W_old c in every matrix, so the embedding undoes any closed-form edit of keys and values."""
    edit = RECE(epochs=1, derive_ridge=0.0)(tiny, [CHURCH])
    first = RECE(epochs=0)(tiny, [CHURCH])
    c, derived = tiny.encode(["church"]).tokens[0].double(), edit.extra["derived.0.church"].double()
    with first.applied(tiny) as undone:
        for name in tiny.text_weights():
            wanted, found = c @ tiny.weights()[name].double().T, derived @ undone.weights()[name].double().T
            assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_schedules_follow_the_kind(tiny):
    style, unsafe = Concept("neon", kind="style"), Concept("dagger", kind="unsafe")
    edit = RECE()(tiny, [style, unsafe, "dog"])
    drawn = {name: sum(key.endswith(f".{name}") for key in edit.extra) for name in ("neon", "dagger", "dog")}
    assert drawn == {"neon": 10, "dagger": 5, "dog": 1}  # section 4; the object from its code
    assert len(edit.meta["closed_form"]["epochs"]) == 10
    edit = RECE.preset("repo")(tiny, [style, unsafe, "dog"])
    drawn = {name: sum(key.endswith(f".{name}") for key in edit.extra) for name in ("neon", "dagger", "dog")}
    assert drawn == {"neon": 1, "dagger": 3, "dog": 1}


def test_only_the_first_prompt_of_a_concept_gives_derived_embeddings(tiny):
    edit = RECE(templates=("{}", "a picture of a {}"), epochs=2)(tiny, [CHURCH])
    assert set(edit.extra) == {"derived.0.church", "derived.1.church"}
    assert edit.extra["derived.0.church"].shape == (16, 32)


def test_derived_embeddings_are_saved(tiny, tmp_path):
    edit = RECE(epochs=2)(tiny, [CHURCH])
    edit.save(tmp_path / "e.safetensors")
    again = Edit.load(tmp_path / "e.safetensors")
    assert again == edit
    assert all(torch.equal(again.extra[name], value) for name, value in edit.extra.items())


def test_gram_of_the_weights_is_made_once(tiny, monkeypatch):
    forget()
    RECE()(tiny, [CHURCH])
    monkeypatch.setattr("efface.methods.closed_form.method.weight_gram", lambda *_: pytest.fail("made again"))
    RECE()(tiny, ["dog"])
    forget()


def test_stopping_when_the_judge_no_longer_sees_it(tiny, monkeypatch):
    shown = iter([0.75, 0.5, 0.0, 1.0])
    seen = []
    monkeypatch.setattr(rece, "presence", lambda _model, _concept, images: (seen.append(images), next(shown))[1])
    edit = RECE(epochs=4, stop_below=0.25, stop_images=2)(tiny, [CHURCH], seed=5)
    report = edit.meta["closed_form"]
    assert report["shown"] == [0.75, 0.5, 0.0]
    assert len(report["epochs"]) == 2  # the third derived embedding shows nothing and is not erased
    assert edit.meta["fields"]["stop_below"] == 0.25
    assert [images.shape for images in seen] == [(2, 3, 16, 16)] * 3
    assert edit.dense(tiny).keys() == set(tiny.text_weights())
    plain = RECE(epochs=2)(tiny, [CHURCH])
    for name, delta in edit.dense(tiny).items():
        torch.testing.assert_close(delta, plain.dense(tiny)[name])


@pytest.mark.parametrize(
    "fields",
    [
        {"ridge": 0.0},
        {"first_ridge": float("nan")},
        {"derive_ridge": -1.0},
        {"preserve_scale": -0.1},
        {"epochs": -1},
        {"stop_images": 0},
    ],
)
def test_bad_fields(fields):
    with pytest.raises(BadInput):
        RECE(**fields)
