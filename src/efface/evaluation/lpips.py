"""LPIPS of what was erased, of what was not, and their difference, as RECE's table 3 has them."""

import math
from typing import NamedTuple

from efface.errors import BadInput
from efface.evaluation.record import Scored
from efface.evaluation.summary import DIGITS, Mean

KEPT = "unrelated"


class ErasedUnerased(NamedTuple):
    """Hold LPIPS_e (high is good), LPIPS_u (low is good) and LPIPS_d = e - u (high is good); n of d is the smaller."""

    e: Mean
    u: Mean
    d: Mean


def lpips_eud(record: Scored, label: str) -> ErasedUnerased:
    """Return the three of a record's LPIPS by its label ("lpips alex 64 px").

    Raises `BadInput` unless the record has it for the erased concept and for unrelated ones.
    """
    e, u = record.mean(label, "target"), record.mean(label, KEPT)
    if e is None or u is None:
        raise BadInput(f"the record has no {label} of the erased concept and of unrelated ones")
    spread = round(math.hypot(e.error, u.error), DIGITS)  # of independent means
    return ErasedUnerased(e, u, Mean(value=round(e.value - u.value, DIGITS), error=spread, n=min(e.n, u.n)))


__all__ = ["ErasedUnerased", "lpips_eud"]
