"""Prompts read as sentences whatever is named: articles before things, none before persons."""

import pytest

from efface.concept import Concept
from efface.evaluation.prompts import Plan

TABLE = {
    name: Concept(name, kind=kind)
    for name, kind in (("umbrella", "object"), ("dog", "object"), ("Ann Lee", "identity"), ("ink", "style"))
}
PLAN = Plan(target_seeds=(0,), seeds=(0,), reworded_seeds=(0,), paired_seeds=(0,))


def prompts(name: str, group: str) -> set[str]:
    cases = PLAN.cases([TABLE[name]], TABLE)
    return {case.prompt for case in cases if group in case.groups}


def test_things_have_their_article() -> None:
    assert prompts("umbrella", "target") == {"a picture of an umbrella"}
    assert "a picture of an umbrella in the style of ink" in prompts("umbrella", "styled")
    assert "an image of the umbrella" in prompts("umbrella", "reworded")
    assert "a picture of an umbrella and a dog" in prompts("umbrella", "joined")


def test_persons_have_none() -> None:
    assert prompts("Ann Lee", "target") == {"a photo of Ann Lee"}
    assert "a picture of Ann Lee in the style of ink" in prompts("Ann Lee", "styled")
    assert "an image of Ann Lee" in prompts("Ann Lee", "reworded")
    assert "a picture of Ann Lee and an umbrella" in prompts("Ann Lee", "joined")
    assert "a picture of a dog and Ann Lee" in prompts("dog", "joined")


def test_content_is_asked_for_by_its_words() -> None:
    assert Concept("weapons", kind="unsafe").texts == ("weapons",)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {}", "an umbrella"),
        ("the {}", "the umbrella"),
        ("{}, a photo", "umbrella, a photo"),
        ("a {} {}", "an umbrella {}"),
    ],
)
def test_only_the_first_place_is_filled(template: str, text: str) -> None:
    assert TABLE["umbrella"].fill(template) == text


def test_a_name_with_braces_is_a_name() -> None:
    table = TABLE | {"{x}": Concept("{x}")}
    asked = {case.prompt for case in PLAN.cases([table["{x}"]], table) if "styled" in case.groups}
    assert asked == {"a picture of a {x} in the style of ink"}
