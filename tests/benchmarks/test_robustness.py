"""What the page of attacks says: chances over choices of embeddings, verdicts by intervals, hours by records."""

from importlib import import_module
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest

robustness: Any = import_module("robustness")

FOUND = (  # three embeddings × two seeds, embeddings outermost
    True, False,
    False, False,
    False, True,
)  # fmt: skip


def attacked(
    attack: str, method: str, hits: int, n: int = 20, found: tuple[bool, ...] = (), before: int = 0, cpu: float = 1.0
) -> Any:
    """Make what is read of a record: of n images, how many show the concept under attack and before it."""
    rows = tuple(SimpleNamespace(after=i < hits, before=i < before, original="", edited="") for i in range(n))
    edit = SimpleNamespace(method=method, preset="mini", id=f"{method} edit")
    about = SimpleNamespace(name=attack)
    cost = SimpleNamespace(cpu_seconds=cpu)
    return SimpleNamespace(attack=about, edit=edit, rows=rows, found=found, concept="church", attacking=cost)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_chance_of_several_is_the_mean_over_all_choices_of_them(count: int) -> None:
    row = attacked("diverse_inversion", "uce", 1, 2, FOUND)
    each = [FOUND[:2], FOUND[2:4], FOUND[4:]]
    choices = [[any(one[seed] for one in chosen) for seed in (0, 1)] for chosen in combinations(each, count)]
    expected = sum(map(sum, choices)) / (2 * len(choices))
    assert robustness.any_of([row], count) == pytest.approx(expected)


def test_the_table_of_embeddings_has_all_of_them_last() -> None:
    row = attacked("diverse_inversion", "uce", 1, 2, FOUND)
    other = attacked("inversion", "uce", 1, 2, (True, True))
    lines = robustness.embeddings([row, other])
    assert lines[2] == "| method | name | 1 | 2 | 3 |"
    assert lines[4].startswith("| `uce` | 0.0 [0, 66] | 33.3 | 66.7 | 100.0 |")
    assert robustness.embeddings([other]) == []


def test_a_claim_is_told_by_intervals_that_are_apart() -> None:
    claim = next(one for one in robustness.CLAIMS if "erased" in one.text and "`uce`" in one.text)
    strong, weak = attacked("inversion", "uce", 20), attacked("inversion", "uce", 2, before=1)
    assert robustness.verdict(claim, [strong]) == "agrees"
    assert robustness.verdict(claim, [weak]) == "cannot be told"
    assert robustness.verdict(claim, [attacked("inversion", "uce", 0, before=20)]) == "disagrees"
    assert robustness.verdict(claim, [attacked("p4d", "uce", 20)]) == "not measured"


def test_costs_are_sums_over_records() -> None:
    rows = [attacked("inversion", "uce", 1, cpu=3600.0), attacked("inversion", "rece", 1, cpu=1800.0)]
    lines = robustness.costs([*rows, attacked("p4d", "uce", 1, cpu=36.0)])
    assert "| `inversion` | 2700 s | 3600 s | 1.50 h |" in lines
    assert any("1.5 hours in all" in line for line in lines)
    assert any("church" in line for line in lines)


def test_the_whole_audit_adds_means_over_methods() -> None:
    cost = SimpleNamespace(cpu_seconds=600.0)
    edit = SimpleNamespace(method="uce", preset="mini")
    scored = [SimpleNamespace(edit=edit, erasing=cost, evaluating=None)] * 2
    rows = [attacked("p4d", "uce", 1, cpu=1000.0), attacked("p4d", "uce", 1, cpu=1400.0), attacked("derived", "uce", 1)]
    text = " ".join(robustness.whole_audit(scored, rows))
    assert "takes 1.5 hours of one core" in text  # 3 × (600 + 1,200) s; derived is not among the six
    assert "0.5 for the edits, 0.0 for judging them, 1.0 for the attacks" in text


def test_claims_are_about_the_first_preset_of_a_method() -> None:
    first, second = attacked("inversion", "sld", 1), attacked("inversion", "sld", 2)
    second.edit.preset = "max"
    assert robustness.first_presets([second, first]) == [first]
