"""Derived embedding: optimal by its gradient, exact where the edit has an inverse, and honest where it has none."""

from dataclasses import dataclass, replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.derived import Derived
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard, Hooks, MapGuard
from efface.edits.parts import TextMap
from efface.errors import BadInput
from efface.method import InferenceMethod
from efface.methods.negative import NegativePrompt
from efface.methods.time import TIME
from efface.methods.uce import UCE
from efface.models.token_vectors import SLOT
from efface.query import Query

CHURCH = Concept("church", anchor="dog")
LIKE = Query("a photo of a church", seed=3, steps=3, guidance=1.0)
EXACT = Derived(ridge=0.0)


def mapped(model, change, names=()):
    """Return the model with every key and value matrix W replaced by W change."""
    weights = {name: model.weights()[name].detach() @ change.float() for name in names or model.text_weights()}
    return model.edited(weights, id="mapped")


def random_map(seed=0, dim=32):
    return torch.eye(dim) + 0.2 * torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))


def flat(direction):
    """Return the projection that removes a direction: it has no inverse."""
    unit = direction.double() / direction.double().norm()
    return torch.eye(len(unit), dtype=torch.float64) - torch.outer(unit, unit)


def missed(edited, original, derived, rows, change=None):
    """Return Σ ‖W c' − W₀ c‖² over matrices and rows, matrix by matrix."""
    total = torch.zeros((), dtype=torch.float64)
    for name in original.text_weights():
        new, old = (model.weights()[name].detach().double() for model in (edited, original))
        new = new if change is None else new @ change.double()
        total = total + (derived @ new.T - rows @ old.T).square().sum()
    return total


@pytest.mark.parametrize("ridge", [0.1, 3.0])
@pytest.mark.parametrize("guarded", [False, True])
def test_the_gradient_vanishes_at_the_optimum(tiny, ridge, guarded):
    """Of Σ ‖W c' − W₀ c‖² + λ ‖c'‖², for weights of no common map and for guards that map the text."""
    rng = torch.Generator().manual_seed(1)
    weights = {
        name: tiny.weights()[name].detach() + 0.05 * torch.randn(tiny.weights()[name].shape, generator=rng)
        for name in tiny.text_weights()
    }
    edited, change = tiny.edited(weights, id="moved"), None
    if guarded:
        maps = [MapGuard(torch.randn(32, 2, generator=rng) * 0.2, torch.randn(2, 32, generator=rng)) for _ in range(2)]
        edited = edited.guarded(*maps)
        first, second = (torch.eye(32) + m.left @ m.right for m in maps)
        change = second @ first
    found = Derived(ridge=ridge)(Target(edited, original=tiny), CHURCH, LIKE)
    rows = tiny.encode([LIKE.prompt]).tokens[0].double()
    derived = found.queries[0].context.tokens[0].double().requires_grad_()
    objective = missed(edited, tiny, derived, rows, change) + ridge * derived.square().sum()
    objective.backward()
    scale = missed(edited, tiny, torch.zeros_like(rows), rows, change)
    assert float(derived.grad.norm()) < 1e-4 * float(scale.sqrt())
    assert not found.about["one_map"]
    share = float((missed(edited, tiny, derived.detach(), rows, change) / scale).sqrt())
    assert -found.scores[0] == pytest.approx(share, rel=1e-4)


def test_the_exact_form_gives_the_originals_images(tiny):
    change = random_map()
    edited = mapped(tiny, change)
    found = EXACT(Target(edited, original=tiny), CHURCH, [LIKE, replace(LIKE, seed=4, prompt="art")])
    assert found.about["one_map"]
    assert found.about["inverse"]
    assert found.about["rank"] == 32
    assert found.about["condition"] == pytest.approx(float(torch.linalg.cond(change.double())), rel=1e-3)
    for query in found.queries:
        own = replace(query, context=None)
        rows = tiny.encode([query.prompt]).tokens[0]
        wanted = torch.linalg.solve(change.double(), rows.double().T).T
        torch.testing.assert_close(query.context.tokens[0].double(), wanted, atol=1e-3, rtol=1e-3)
        original, attacked = tiny.generate([own]), edited.generate([query])
        torch.testing.assert_close(attacked, original, atol=1e-4, rtol=0.0)
        assert float((edited.generate([own]) - original).abs().max()) > 1e-2
    before, after = found.about["norm"][0]
    rows = tiny.encode([found.queries[0].prompt]).tokens[0]
    assert before == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-3)
    assert after == pytest.approx(float(found.queries[0].context.tokens[0].norm(dim=1).mean()), rel=1e-3)
    assert max(found.about["least"]) < 1e-3


def test_the_ridge_bounds_the_norm(tiny):
    target = Target(mapped(tiny, random_map()), original=tiny)
    ends = [Derived(ridge=ridge)(target, CHURCH, LIKE) for ridge in (0.0, 0.1, 10.0)]
    norms = [found.about["norm"][0][1] for found in ends]
    assert norms == sorted(norms, reverse=True)
    assert [found.scores[0] for found in ends] == sorted([found.scores[0] for found in ends], reverse=True)
    style = Derived()(target, Concept("neon", kind="style"), LIKE)
    assert (Derived()(target, CHURCH, LIKE).about["ridge"], style.about["ridge"]) == (0.1, 1e-3)


@pytest.mark.parametrize("method", [UCE(), TIME()])
@pytest.mark.parametrize("as_guard", [False, True])
def test_closed_form_edits_are_undone(tiny, method, as_guard):
    """As weights and as a guard on the text, which is the same edit."""
    edit = method(tiny, [CHURCH])
    edit = edit.as_guard() if as_guard else edit
    with edit.applied(tiny) as edited:
        found = EXACT(Target(edited, original=tiny), CHURCH, LIKE)
        images = edited.generate(found.queries)
    assert found.about["one_map"]
    assert found.about["inverse"]
    torch.testing.assert_close(images, tiny.generate([LIKE]), atol=2e-3, rtol=0.0)


def test_a_singular_map_has_no_inverse(tiny):
    """And it is said, with what the best context misses: nothing for a concept off the lost direction."""
    rows = tiny.encode([LIKE.prompt]).tokens[0].double()
    lost = flat(rows[tiny.tokens(LIKE.prompt).subject])
    target = Target(mapped(tiny, lost), original=tiny)
    found = EXACT(target, CHURCH, LIKE)
    assert found.about["one_map"]
    assert not found.about["inverse"]
    assert found.about["rank"] == 31
    assert "condition" not in found.about
    # the least possible, by an independent solver over all matrices
    new, old = (
        torch.cat([model.weights()[n].detach().double() for n in tiny.text_weights()])
        for model in (target.edited, tiny)
    )
    u, s, _ = torch.linalg.svd(new, full_matrices=False)
    u = u[:, s > 1e-6 * s[0]]
    wanted = rows @ old.T
    least = float((wanted - wanted @ u @ u.T).norm() / wanted.norm())
    assert least > 0.01
    assert found.about["least"][0] == pytest.approx(least, rel=1e-2)
    assert -found.scores[0] == pytest.approx(least, rel=1e-3)
    assert found.queries[0].context.tokens.abs().max() < 1e3  # the shortest of the best, not rounding divided by zero
    q, _ = torch.linalg.qr(rows.T)  # 16 rows of 32: a direction across all of them
    across = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    harmless = EXACT(Target(mapped(tiny, flat(across - q @ (q.T @ across))), original=tiny), CHURCH, LIKE)
    assert not harmless.about["inverse"]
    assert harmless.about["least"][0] < 1e-5


def test_positions(tiny):
    """All positions, from the last word on, or the last word only; the others are the prompt's own."""
    target = Target(mapped(tiny, random_map()), original=tiny)
    rows = tiny.encode([LIKE.prompt]).tokens[0]
    every = EXACT(target, CHURCH, LIKE).queries[0].context.tokens[0]
    word = tiny.tokens(LIKE.prompt).subject
    assert word == 5
    for which, places in [("all", range(16)), ("tail", range(word, 16)), ("last", [word])]:
        own = replace(EXACT, rows=which)(target, CHURCH, LIKE).queries[0].context.tokens[0]
        expected = rows.clone()
        expected[list(places)] = every[list(places)]
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(own[word], rows[word], atol=1e-2)


def test_v_only_edits_are_no_map_of_the_text(tiny):
    names = [name for name in tiny.text_weights() if ".to_v." in name]
    found = EXACT(Target(mapped(tiny, random_map(), names), original=tiny), CHURCH, LIKE)
    assert not found.about["one_map"]
    assert "inverse" not in found.about
    assert -found.scores[0] == pytest.approx(found.about["least"][0], rel=1e-2)


def test_a_query_without_a_prompt_asks_for_the_concept(tiny):
    target = Target(mapped(tiny, random_map()), original=tiny)
    found = EXACT(target, CHURCH, replace(LIKE, prompt=""))
    named = EXACT(target, CHURCH, replace(LIKE, prompt=CHURCH.texts[0]))
    assert found.queries == named.queries
    assert found.cost == {"images": 0, "calls": 0, "backward": 0, "texts": 1}
    assert SLOT not in found.queries[0].prompt


def test_sdxl(tiny_xl):
    """The pooled vector, which no text weight reads, is the prompt's own."""
    edited = mapped(tiny_xl, random_map(2, 96) * 0.5 + 0.5 * torch.eye(96))
    found = EXACT(Target(edited, original=tiny_xl), CHURCH, LIKE)
    torch.testing.assert_close(edited.generate(found.queries), tiny_xl.generate([LIKE]), atol=2e-3, rtol=0.0)


@dataclass(frozen=True)
class Squares(InferenceMethod):
    """A method whose guard changes the text, but not linearly."""

    def start(self, model, erase):
        return Hooks(embed=lambda c: c.with_tokens(c.tokens**2))


def test_bad_inputs(tiny, tiny2, tiny_xl, lamp):
    with pytest.raises(BadInput, match="with the original model: give it"):
        EXACT(Target(tiny), CHURCH, LIKE)
    with pytest.raises(BadInput, match="there is nothing to derive; try inversion"):
        EXACT(Target(tiny, original=tiny), CHURCH, LIKE)
    with pytest.raises(BadInput, match="there is nothing to derive; try inversion"):
        EXACT(Target(tiny.guarded(Guard(NegativePrompt(), (CHURCH,))), original=tiny), CHURCH, LIKE)
    with pytest.raises(BadInput, match="no linear map"):
        EXACT(Target(mapped(tiny, random_map()).guarded(Guard(Squares(), ())), original=tiny), CHURCH, LIKE)
    with pytest.raises(BadInput, match="another architecture"):
        EXACT(Target(tiny, original=tiny_xl), CHURCH, LIKE)
    with pytest.raises(BadInput, match="ridge must be from 0"):
        Derived(ridge=-1.0)
    if not lamp.model.text_weights():
        with pytest.raises(BadInput, match="no weights whose only input is the text"):
            EXACT(Target(lamp.model, original=lamp.model), "0", Query("0", steps=2))


def test_other_guards_stay_in_place(tiny):
    """A negative prompt beside a text map does not keep the map from being undone."""
    g = TextMap(tuple(tiny.text_weights()), torch.randn(32, 1) * 0.1, torch.randn(1, 32))
    with Edit(maps=(g,)).applied(tiny) as edited:
        both = edited.guarded(Guard(NegativePrompt(), (CHURCH,)))
        found = EXACT(Target(both, original=tiny), CHURCH, LIKE)
        assert found.about["inverse"]
        torch.testing.assert_close(both.generate(found.queries), tiny.generate([LIKE]), atol=1e-3, rtol=0.0)
