"""Templates that name another concept to be erased are left out, at a cost that is linear in the number of concepts."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.concept import Concept
from efface.methods.uce import UCE

WORDS = ("church", "Church", "neon", "red house", "house", "a", "k", "K", "in", "é", "(x)")


def plainly(method: UCE, concept: Concept, others: Sequence[Concept]) -> list[str]:
    """Return the templates by their definition: one expression of all other concepts, for each concept."""
    forms = method.style_templates if concept.kind == "style" else method.templates
    named = re.compile("|".join(rf"\b{re.escape(c.name)}\b" for c in others) or r"(?!)", re.IGNORECASE)
    return [form for form in forms if not named.search(form)] or ["{}"]


words = st.sampled_from(WORDS)
texts = st.lists(words, max_size=3).map(lambda found: " ".join([*found[:1], "{}", *found[1:]]))
asked = st.tuples(words, st.sampled_from(["", "dog"]), st.sampled_from(["object", "style"]))


@settings(deadline=None)
@given(
    st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=4),
    st.lists(asked, min_size=1, max_size=5), st.lists(asked, max_size=4),
)  # fmt: skip
def test_templates_are_those_of_the_definition(
    forms: list[str], style_forms: list[str], erased: list[tuple[str, str, Any]], kept: list[tuple[str, str, Any]]
) -> None:
    erase, preserve = (
        [Concept(name, anchor=anchor, kind=kind) for name, anchor, kind in found] for found in (erased, kept)
    )
    method = UCE(templates=tuple(forms), style_templates=tuple(style_forms))
    for concept, pairs in zip(erase, method.phrases(erase), strict=True):
        others = [other for other in erase if other != concept]
        assert [old.template for old, _ in pairs] == plainly(method, concept, others)
        assert [new.template for _, new in pairs] == plainly(method, concept, others)
    expected = [form for concept in preserve for form in plainly(method, concept, erase)]
    assert [phrase.template for phrase in method.preserved_prompts(preserve, erase, empty=False)] == expected


def test_the_cost_is_linear_in_the_number_of_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the letters of all expressions that are compiled."""
    compile_, length = re.compile, 0

    def counting(pattern: str, flags: int = 0) -> re.Pattern[str]:
        nonlocal length
        length += len(pattern)
        return compile_(pattern, flags)

    monkeypatch.setattr(re, "compile", counting)
    found = []
    for count in (10, 40):
        length = 0
        erase = [Concept(f"thing{i}") for i in range(100, 100 + count)]
        UCE().phrases(erase)
        UCE().preserved_prompts([Concept(f"other{i}") for i in range(count)], erase, empty=True)
        found.append(length)
    assert 0 < found[1] == 4 * found[0]
