"""TIME: token alignment by hand, and the formula written out."""

import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.closed_form.prompts import Text, aligned
from efface.methods.time import TIME

ROSE = Concept("house", anchor="blue house")  # the paper edits assumptions: "A rose" to "A blue rose"


def targets(old, new, length=8):
    """Return the position in the new prompt that each position of the old one goes to."""
    vectors = torch.arange(float(length))[:, None]
    rows, goals = aligned(Text(vectors, 0, tuple(old)), Text(vectors, 0, tuple(new)))
    assert torch.equal(rows, vectors)
    return goals[:, 0].int().tolist()


@pytest.mark.parametrize(
    ("old", "new", "to"),
    [
        # start 0, end 9, padding behind it; a word put in before the noun (the paper's case)
        ([0, 1, 2, 9], [0, 1, 5, 2, 9], [0, 1, 3, 4, 5, 6, 7, 7]),
        ([0, 1, 2, 9], [0, 1, 2, 9], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 9], [0, 1, 3, 9], [0, 1, 2, 3, 4, 5, 6, 7]),  # one word for another
        ([0, 1, 2, 9], [0, 1, 3, 4, 9], [0, 1, 2, 4, 5, 6, 7, 7]),  # one for two: its first
        ([0, 1, 2, 3, 9], [0, 1, 4, 9], [0, 1, 2, 2, 3, 4, 5, 6]),  # two for one
        ([0, 1, 2, 9], [0, 1, 9], [0, 1, 1, 2, 3, 4, 5, 6]),  # a word left out: the one before it
        ([0, 2, 9], [0, 9], [0, 0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_alignment(old, new, to):
    assert targets(old, new) == to


@pytest.mark.parametrize("preset", ["paper", "repo"])
def test_is_the_formula(tiny, preset):
    """W = (λW + Σ v* cᵀ)(λI + Σ c cᵀ)⁻¹ over all rows (eq. 3); the paper's runs have keys and three more prompts."""
    edit = TIME.preset(preset)(tiny, [ROSE])
    prompts = ["A", "A photo of a", "An image of a", "A picture of a"][: 4 if preset == "paper" else 1]
    pairs = []
    for prompt in prompts:
        old, new = (v.double() for v in tiny.encode([f"{prompt} house", f"{prompt} blue house"]).tokens)
        word = 1 + len(prompt.split())  # behind the start token and the prompt's words, where "blue" comes in
        pairs.append((old, new[[*range(word), *range(word + 1, 16), 15]]))
    c, g = (torch.cat(part) for part in zip(*pairs, strict=True))
    found, weights = edit.dense(tiny), tiny.weights()
    assert set(found) == {n for n in tiny.text_weights() if preset == "paper" or "to_v" in n}
    for name, delta in found.items():
        weight = weights[name].double()
        normal = 0.1 * torch.eye(32, dtype=torch.float64) + c.T @ c
        expected = (0.1 * weight + weight @ g.T @ c) @ torch.linalg.inv(normal) - weight
        assert (delta - expected).norm() < 1e-5 * expected.norm()


def test_gradient_of_its_objective_is_zero(tiny):
    """Eq. 2 of TIME: Σ ‖W c − W₀ c*‖² + λ‖W − W₀‖², at the edit as it was before rounding to float32."""
    from efface.methods.closed_form.least_squares import solve

    c, g = (v.double() for v in tiny.encode(["A house", "A blue house"]).tokens)
    fit = solve(c, g, 0.1)
    base = tiny.weights()[tiny.text_weights()[0]].double()
    weight = (base + base @ fit.step.left @ fit.step.right).requires_grad_()
    loss = (c @ weight.T - g @ base.T).square().sum() + 0.1 * (weight - base).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.norm() < 1e-10 * (c @ base.T - g @ base.T).norm() * c.norm()


def test_the_paper_augments_the_prompt_and_the_command_line_does_not(tiny):
    for preset, count in {"paper": 4, "repo": 1}.items():
        edit = TIME.preset(preset)(tiny, [ROSE])
        assert edit.meta["closed_form"]["texts"] == count
        assert edit.meta["preset"] == preset
    style = TIME()(tiny, [Concept("neon", kind="style", anchor="blue neon")])
    assert style.meta["closed_form"]["texts"] == 4


def test_preserving_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("dog")
    with pytest.raises(BadInput, match="preserves nothing"):
        TIME(preserve_file=str(tmp_path / "names.txt"))


def test_erasing_without_an_anchor(tiny):
    """The concept's token goes to the word before it and everything behind it moves up by one."""
    edit = TIME()(tiny, ["church"])
    c, g = (v.double() for v in tiny.encode(["A church", "A"]).tokens)
    with edit.applied(tiny) as edited:
        for name in tiny.text_weights():
            old, new = tiny.weights()[name].double(), edited.weights()[name].double()
            before, after = (c[2:4] @ w.T - g[1:3] @ old.T for w in (old, new))
            assert after.norm() < 0.3 * before.norm()
