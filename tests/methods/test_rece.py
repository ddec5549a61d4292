"""RECE against algorithm 1 written out on the matrices themselves, epoch by epoch."""

import pytest
import torch

from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput, UnknownName
from efface.judge import Judge, Profile
from efface.methods import rece
from efface.methods.closed_form.cache import forget
from efface.methods.rece import RECE
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.query import Query

CHURCH = Concept("church", anchor="red house")
EYE = torch.eye(32, dtype=torch.float64)


def tail(model, c, g):
    """Pair the rows from the last word of "church" (1) and of "red house" (2) on."""
    return c[1:-1], g[2:]


def without(new, old):
    """Return outputs less their component along the outputs of the erased rows."""
    u = old / old.norm()
    return new - (u * new).sum() * u


def edited(old, anchor, c, g, k, ridge, p, tensor=False):
    """Solve eq. 3 on one matrix, around `old`, with the outputs of `anchor` as targets."""
    wanted = without(g @ anchor.T, c @ old.T) if tensor else g @ anchor.T
    top = ridge * old + wanted.T @ c + p * anchor @ k.T @ k
    return top @ torch.linalg.inv(ridge * EYE + c.T @ c + p * k.T @ k)


REGULARIZERS = {  # (λ terms of the normal matrix, of the right side) as the code has them, from A = Σ WᵀW, c and t
    "zero": lambda a, c, t: (EYE, 0 * c),
    "standard": lambda a, c, t: (EYE, t),
    "1st": lambda a, c, t: (a, c @ a),
    "2nd": lambda a, c, t: (EYE, c),
    "both": lambda a, c, t: (EYE + a, c @ a + c),
}


def algorithm(
    model,
    preserve=(),
    epochs=1,
    ridge=1e-3,
    goals="original",
    rows="tail",
    first=(0.1, 0.1),
    own_vectors=False,
    regularizer="zero",
    tensor=False,
):
    """Run algorithm 1 with inverses; return the weights and derived embeddings of every epoch."""
    c, g, *k = (v.double() for v in model.encode(["church", "red house", "", *preserve]).tokens)
    k = torch.cat(k)
    weights = model.weights()
    base = [weights[n].detach().double() for n in model.text_weights()]
    now = [edited(w, w, *tail(model, c, g), k, *first, tensor) for w in base] if first else base
    derived = []
    for _ in range(epochs):
        normal, mixed = sum(w.T @ w for w in now), sum(w.T @ w0 for w, w0 in zip(now, base, strict=True))
        left, right = REGULARIZERS[regularizer](normal, c, g)
        adversarial = (c @ mixed.T + ridge * right) @ torch.linalg.inv(normal + ridge * left)
        derived.append(adversarial)
        pair = (adversarial, g) if rows == "all" else tail(model, adversarial, g)
        if own_vectors:
            own, target = tail(model, c, g)
            pair = torch.cat([pair[0], own]), torch.cat([pair[1], target if goals == "original" else own])
        anchors = base if goals == "original" else now
        now = [edited(w, a, *pair, k, 0.1, 0.1, tensor) for w, a in zip(now, anchors, strict=True)]
    return dict(zip(model.text_weights(), now, strict=True)), derived


def assert_same(model, edit, weights, rtol=1e-4):
    found = edit.dense(model)
    assert found.keys() == weights.keys()
    for name, delta in found.items():
        expected = weights[name] - model.weights()[name].double()
        assert (delta - expected).norm() < rtol * expected.norm()


REPO = {"goals": "current", "rows": "all", "first": (0.5, 1.0)}


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {}),
        ({"epochs": 4, "derive_ridge": 0.1}, {"epochs": 4, "ridge": 0.1}),
        (RECE.PRESETS["repo"], REPO),
        (RECE.PRESETS["repo"] | {"epochs": 3, "derive_ridge": 0.1}, REPO | {"epochs": 3, "ridge": 0.1}),
        (RECE.PRESETS["repo-i2p"], REPO | {"epochs": 2}),
        (RECE.PRESETS["repo-scratch"], REPO | {"first": None}),
        ({"epochs": 2, "own_vectors": True}, {"epochs": 2, "own_vectors": True}),
        (RECE.PRESETS["repo"] | {"epochs": 2, "own_vectors": True}, REPO | {"epochs": 2, "own_vectors": True}),
        ({"epochs": 0}, {"epochs": 0}),
        ({"first_preserve_scale": 0.7, "first_ridge": 0.2}, {"first": (0.2, 0.7)}),
        ({"technique": "tensor", "epochs": 2, "derive_ridge": 0.1}, {"tensor": True, "epochs": 2, "ridge": 0.1}),
        (RECE.PRESETS["repo"] | {"technique": "tensor", "epochs": 2}, REPO | {"tensor": True, "epochs": 2}),
        *(
            ({"regularizer": name, "derive_ridge": 0.1, "epochs": 2}, {"regularizer": name, "ridge": 0.1, "epochs": 2})
            for name in ("standard", "1st", "2nd", "both")
        ),
    ],
)
@pytest.mark.parametrize("preserve", [(), ("dog", "a red car", "guitar")])
def test_is_algorithm_1(tiny, fields, settings, preserve):
    edit = RECE(**fields)(tiny, [CHURCH], preserve=preserve)
    weights, derived = algorithm(tiny, preserve, **settings)
    assert_same(tiny, edit, weights)
    assert list(edit.extra) == [f"derived.{epoch}.church" for epoch in range(len(derived))]
    for found, expected in zip(edit.extra.values(), derived, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", ["each", "once"])
def test_several_concepts_keep_the_empty_prompt_once_each_or_once(tiny, copies):
    """train.py keeps it once for each unsafe concept, in the epochs only; the other scripts keep it once."""
    texts = ("church", "dog", "car")
    edit = RECE.preset("repo", epochs=1, derive_ridge=0.1, preserve_empty=copies)(
        tiny, [Concept(text, anchor="house") for text in texts], preserve=["guitar"]
    )
    g, empty, guitar, *cs = (v.double() for v in tiny.encode(["house", "", "guitar", *texts]).tokens)
    base = {n: tiny.weights()[n].detach().double() for n in tiny.text_weights()}
    c, target = torch.cat([v[1:] for v in cs]), torch.cat([g[1:]] * 3)
    k = torch.cat([empty, guitar])
    now = {n: edited(w, w, c, target, k, 0.5, 1.0) for n, w in base.items()}
    normal, mixed = sum(w.T @ w for w in now.values()), sum(now[n].T @ w for n, w in base.items())
    c = torch.cat(cs) @ mixed.T @ torch.linalg.inv(normal + 0.1 * EYE)
    k = torch.cat([empty] * (3 if copies == "each" else 1) + [guitar])
    assert_same(tiny, edit, {n: edited(w, w, c, torch.cat([g] * 3), k, 0.1, 0.1) for n, w in now.items()})


def test_the_code_copies_the_empty_prompt_for_unsafe_concepts_only(tiny):
    for kind, copies in {"unsafe": "each", "object": "once"}.items():
        concepts = [Concept(name, kind=kind) for name in ("dagger", "bomb")]
        fields = {"epochs": 1, "derive_ridge": 0.1}
        edits = [RECE.preset("repo", **fields, **more)(tiny, concepts) for more in ({}, {"preserve_empty": copies})]
        other = RECE.preset("repo", **fields, preserve_empty={"each": "once", "once": "each"}[copies])(tiny, concepts)
        assert torch.equal(edits[0].maps[0].left, edits[1].maps[0].left)
        assert not torch.equal(edits[0].maps[0].left, other.maps[0].left)


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
    assert drawn == {"neon": 10, "dagger": 3, "dog": 1}  # nudity: the checkpoint after epoch 2 of 0 to 4
    assert len(edit.meta["closed_form"]["epochs"]) == 10
    edit = RECE.preset("repo")(tiny, [style, unsafe, "dog"])
    drawn = {name: sum(key.endswith(f".{name}") for key in edit.extra) for name in ("neon", "dagger", "dog")}
    assert drawn == {"neon": 1, "dagger": 3, "dog": 1}
    i2p = RECE.preset("repo-i2p")(tiny, [unsafe])
    assert list(i2p.extra) == ["derived.0.dagger", "derived.1.dagger"]


@pytest.mark.parametrize(
    ("concept", "ridge", "scale"),
    [
        (Concept("church"), 1e-3, 1.0),  # "difficult objects for UCE"
        (Concept("Garbage Truck"), 1e-3, 1.0),
        (Concept("golf ball"), 0.1, 1.0),
        (Concept("church", kind="style"), 1e-3, 0.1),  # erased-kelly mckernan-…-1-0.1.pt
        (Concept("church", kind="unsafe"), 0.1, 1.0),  # erased-nudity-…-1-1.0.pt
        (Concept("church", kind="identity"), 0.1, 1.0),
    ],
)
def test_lambdas_follow_kind_and_difficulty(tiny, concept, ridge, scale):
    edit = RECE.preset("repo", epochs=1)(tiny, [concept], preserve=["dog"])
    fields = {"derive_ridge": ridge, "first_preserve_scale": scale}
    assert torch.equal(
        RECE.preset("repo", epochs=1, **fields)(tiny, [concept], ["dog"]).maps[0].left, edit.maps[0].left
    )
    for name, value in fields.items():
        other = RECE.preset("repo", epochs=1, **{name: 2 * value})(tiny, [concept], ["dog"])
        assert not torch.equal(other.maps[0].left, edit.maps[0].left)
    paper = RECE(epochs=1, derive_ridge=ridge, first_preserve_scale=0.1)(tiny, [concept], ["dog"])
    assert torch.equal(RECE(epochs=1)(tiny, [concept], ["dog"]).maps[0].left, paper.maps[0].left)


def test_exact_undoing_under_the_tensor_technique(tiny):
    """Eq. 5 needs no map: W' c' is as near to W c as can be, in least squares over all matrices."""
    edit = RECE(technique="tensor", epochs=1, derive_ridge=0.0)(tiny, [CHURCH])
    first = RECE(technique="tensor", epochs=0)(tiny, [CHURCH])
    c, derived = tiny.encode(["church"]).tokens[0].double(), edit.extra["derived.0.church"].double()
    with first.applied(tiny) as undone:
        old = torch.cat([tiny.weights()[n].double() for n in tiny.text_weights()])
        new = torch.cat([undone.weights()[n].double() for n in tiny.text_weights()])
    best = torch.linalg.lstsq(new, old @ c.T).solution.T
    torch.testing.assert_close(derived, best, rtol=1e-3, atol=1e-3)


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
    RECE(epochs=0)(tiny, ["dog"])  # nothing is derived
    forget()


class Says(Judge):
    """Judge that says what it is told about each batch of images: the share of them that shows the church."""

    classes = ("church", "dog")

    def __init__(self, *shares):
        self.shares, self.seen = iter(shares), []

    @property
    def profile(self):
        return Profile(evaluator="told")

    def objects(self, images):
        self.seen.append(images)
        shown = torch.arange(len(images)) < next(self.shares) * len(images)
        return torch.stack([shown.float(), 1 - shown.float()], 1)


def test_stopping_when_the_judge_no_longer_sees_it(tiny, monkeypatch):
    judge, asked = Says(0.75, 0.5, 0.0, 1.0), []
    monkeypatch.setattr(rece, "judge_of", lambda *names: (asked.append(names), judge)[1])
    edit = RECE(epochs=4, stop_below=0.25, stop_images=4, judge="nudenet")(tiny, [CHURCH], seed=5)
    report = edit.meta["closed_form"]
    assert asked == [(tiny.name, "nudenet")]
    assert report["shown"] == [0.75, 0.5, 0.0]
    assert len(report["epochs"]) == 2  # the third derived embedding shows nothing and is not erased
    assert edit.meta["fields"]["stop_below"] == 0.25
    assert [images.shape for images in judge.seen] == [(4, 3, 16, 16)] * 3
    assert edit.dense(tiny).keys() == set(tiny.text_weights())
    plain = RECE(epochs=2)(tiny, [CHURCH])
    for name, delta in edit.dense(tiny).items():
        torch.testing.assert_close(delta, plain.dense(tiny)[name])
    with plain.applied(tiny) as edited:  # what the judge saw last: the third embedding under two epochs
        context = Context(edit.extra["derived.2.church"][None])
        queries = [Query("a picture of a church", seed=5 + i, context=context) for i in range(4)]
        torch.testing.assert_close(edited.generate(queries), judge.seen[-1], rtol=0, atol=1e-3)


def test_a_judge_that_cannot_help_is_refused_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr(Model, "encode", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr(rece, "judge_of", lambda *_: Says())
    with pytest.raises(UnknownName, match="class of the judge 'guitar'"):
        RECE(stop_below=0.5)(tiny, ["church", "guitar"])
    monkeypatch.undo()
    with pytest.raises(BadInput, match="no judge for"):
        RECE(stop_below=0.5)(tiny, ["church"])


def test_images_go_to_the_judge(monkeypatch):
    """In float32 and on its own device, wherever the model makes them."""
    judge, moved = Says(0.5), []
    judge.device = torch.device("cpu")
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: (moved.append(args), to(self, *args))[1])
    assert rece.presence(judge, CHURCH, torch.rand(4, 3, 8, 8, dtype=torch.float16)) == 0.5
    assert judge.seen[0].dtype == torch.float32
    assert (judge.device,) in moved


@pytest.mark.parametrize(
    "fields",
    [
        {"ridge": 0.0},
        {"first_ridge": float("nan")},
        {"derive_ridge": -1.0},
        {"preserve_scale": -0.1},
        {"first_preserve_scale": -0.1},
        {"technique": "tensor", "own_vectors": True},
        {"judge": "nudenet"},
        {"start": "none", "epochs": 0},
        {"epochs": -1},
        {"stop_images": 0},
    ],
)
def test_bad_fields(fields):
    with pytest.raises(BadInput):
        RECE(**fields)
