"""The rules by which presets of mini are chosen: no number of a record decides anything else."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from efface.concept import Concept
from efface.evaluation.bench.file import Chosen
from efface.evaluation.evaluate import describe
from efface.evaluation.summary import Share

presets: Any = import_module("presets")
attack_presets: Any = import_module("attack_presets")

ONE, TWO, THREE = (Chosen("methods", "esd", "mini", (("lr", lr),)) for lr in (1.0, 2.0, 3.0))


def erased(lr: float, left: int, related: int, unrelated: int) -> Any:
    """Make what is read of a record: of 40 images each, how many show the target and the others.

    What is on record has the fields that the edit itself says, and no preset's name unless all fields are a preset's.
    """
    shares = {"target": left, "related": related, "unrelated": unrelated}
    summaries = {name: SimpleNamespace(after=Share(hits=hits, n=40)) for name, hits in shares.items()}
    return SimpleNamespace(
        edit=SimpleNamespace(method="esd", fields=presets.settings(Chosen("methods", "esd", "mini", (("lr", lr),)))),
        summaries=summaries,
    )


def test_most_is_kept_among_those_that_leave_little() -> None:
    rows = [erased(1.0, 3, 40, 40), erased(2.0, 2, 20, 30), erased(3.0, 0, 20, 25)]
    assert presets.best([ONE, TWO, THREE], rows) == TWO


def test_where_none_leaves_little_the_least_is_left() -> None:
    rows = [erased(1.0, 30, 40, 40), erased(2.0, 20, 10, 10), erased(3.0, 25, 40, 40)]
    assert presets.best([ONE, TWO, THREE], rows) == TWO


def test_shares_are_pooled_over_concepts() -> None:
    rows = [erased(1.0, 0, 40, 40), erased(1.0, 8, 40, 40), erased(2.0, 2, 0, 0), erased(2.0, 2, 0, 0)]
    assert presets.best([ONE, TWO], rows) == TWO


def attacked(steps: int, hits: int, seconds: float, method: str = "uce") -> Any:
    """Make what is read of an attack's record: of 20 images, how many show the concept; seconds of a processor."""
    return SimpleNamespace(
        attack=SimpleNamespace(
            name="inversion", fields=presets.settings(Chosen("attacks", "inversion", "mini", (("steps", steps),)))
        ),
        edit=SimpleNamespace(method=method),
        rows=[SimpleNamespace(after=i < hits) for i in range(20)],
        attacking=SimpleNamespace(cpu_seconds=seconds),
    )


def test_the_cheapest_attack_is_taken_among_the_strong() -> None:
    few, some, many = (Chosen("attacks", "inversion", "mini", (("steps", n),)) for n in (10, 100, 300))
    rows = [attacked(10, 15, 5.0), attacked(100, 18, 20.0), attacked(300, 20, 60.0)]
    assert attack_presets.best([few, some, many], rows) == some, "18 of 20 is ten points short, 15 more"
    rows += [attacked(100, 0, 20.0, "esd"), attacked(300, 20, 60.0, "esd")]
    assert attack_presets.best([some, many], rows) == many, "pooled over methods"


def test_settings_are_those_that_an_edit_says(tiny) -> None:
    chosen = Chosen("methods", "esd", "mini", (("lr", 1e-4), ("steps", 1)))
    edit = chosen.make()(tiny, [Concept("church")])
    assert presets.settings(chosen) == describe(edit).fields
    assert describe(edit).preset == "", "so that rows cannot be found by the preset's name"
