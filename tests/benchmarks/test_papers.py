"""The papers' tables: every row and column is of something that its protocol runs, and the order is compared right."""

from importlib import import_module
from typing import Any

import pytest

from efface.evaluation.prompts import GROUPS
from efface.evaluation.protocol import find, names, read
from efface.evaluation.stats import Interval

papers: Any = import_module("papers")


def cell(value: float, spread: float | None = None) -> Any:
    return papers.Cell(value, None if spread is None else Interval(value - spread, value + spread))


@pytest.mark.parametrize("table", papers.TABLES, ids=lambda table: table["protocol"])
def test_rows_and_columns_are_of_what_the_protocol_runs(table: dict[str, Any]) -> None:
    bench = read(find(table["protocol"]))
    columns, groups = table["columns"], {group.name for group in GROUPS}
    metrics = [one.make().label for one in bench.metrics or ()]
    for column in columns:
        own = column.get("group", "target")
        assert {own} if isinstance(own, str) else set(own) <= groups
        assert "metric" not in column or column["metric"] in metrics
        assert "attack" not in column or any(papers._is(one.label, column["attack"]) for one in bench.attacks)
    assert {len(row) for row in (table["untouched"], *table["rows"].values())} == {len(columns)}
    for name in table["rows"]:
        assert any(papers._is(one.label, name) for one in bench.methods), name


def test_every_protocol_of_the_five_papers_has_its_table() -> None:
    own = {"audit", "audit-quick", "neighbours"}  # efface's, and EraseBench's
    assert {table["protocol"] for table in papers.TABLES} == set(names()) - own


def test_order() -> None:
    paper = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 3.0}
    mini = {"a": cell(10, 1), "b": cell(20, 1), "c": cell(5, 20)}
    assert papers.order(paper, mini) == (
        "1 of 3 pairs of methods stand as in the paper; of the 1 with intervals apart on mini, 1"
    )
    assert papers.order(paper, {"c": cell(1), "d": cell(2)}) == ""  # the paper does not tell them apart
    assert papers.order({"a": 1.0, "b": 2.0}, {"a": cell(2), "b": cell(1)}) == (
        "0 of 1 pairs of methods stand as in the paper"
    )
