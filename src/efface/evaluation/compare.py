"""Comparable records: those of one judge, one plan of prompts and seeds, one sampler, one model, the same metrics."""

from collections.abc import Sequence
from typing import Any

from efface.errors import BadInput
from efface.evaluation.record import Scored
from efface.util.values import Value


def check_comparable(records: Sequence[Scored]) -> None:
    """Raise `BadInput` for records of different judges, prompts, samplers or models, or instruments of a metric."""
    if not records:
        raise BadInput("no results to put in a table")
    for part in ("evaluator", "sampling"):
        values: list[Value] = [getattr(record, part) for record in records]
        for key in type(values[0]).model_fields:
            _same(key, [getattr(value, key) for value in values])
    _same("model", [record.model.id for record in records])
    for label in dict.fromkeys(label for record in records for label in record.metrics):
        _same(f"instrument of {label}", [record.metrics[label] for record in records if label in record.metrics])


def _same(key: str, values: Sequence[Any]) -> None:
    other = next((value for value in values if value != values[0]), None)
    if other is not None or any(value != values[0] for value in values):
        raise BadInput(f"these results cannot share a table: their {key} differs ({values[0]} and {other})")
