"""Ranges of numbers as intervals in text, "[0, 1)": what every numeric field of a method or attack declares.

A class states the ranges of its own fields as `RANGES`, by field name; those of its bases hold as well. A name such as
"restarts * noises" bounds the product of two fields, which is what memory grows with. Nothing is imported, and the
command line reads the same texts from the source.
"""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from efface.errors import BadInput

Ranges = Mapping[str, str]  # name of a field, or of a product of fields -> interval
FORM = re.compile(r"([\[(])\s*(-?[\d.e+-]+)\s*,\s*(-?[\d.e+-]+)\s*([\])])")

# The intervals that fields of one meaning share. The upper ends are far above any published value and below what
# overflows float32 or fills memory.
COUNT = "[1, 1e6]"  # of steps, images, rounds
OR_NONE = "[0, 1e6]"
ROWS = "[1, 4096]"  # images or latents in memory at once
SOLVER_STEPS = "[1, 1000]"
RATE = "(0, 100]"  # learning rate
RATE_OR_NONE = "[0, 100]"
DECAY = "[0, 100]"  # weight decay
GUIDANCE = "[-1000, 1000]"
WEIGHT = "(0, 1e9]"  # of one term against another
WEIGHT_OR_NONE = "[0, 1e9]"
SHARE = "[0, 1]"


class Interval(NamedTuple):
    """Hold both ends of a range, and whether each belongs to it."""

    low: float
    high: float
    from_low: bool
    to_high: bool


@cache
def interval(text: str) -> Interval:
    """Read "[0, 1)". Raises `ValueError`, which is a mistake of the class that declares it."""
    match = FORM.fullmatch(text)
    if not match or float(match[2]) > float(match[3]):
        raise ValueError(f"{text!r} is not an interval such as '[0, 1)'")
    return Interval(float(match[2]), float(match[3]), match[1] == "[", match[4] == "]")


def within(value: int | float, text: str) -> bool:
    """Return whether a number lies in the interval; NaN lies in none."""
    low, high, from_low, to_high = interval(text)
    return (value >= low if from_low else value > low) and (value <= high if to_high else value < high)


def words(text: str) -> str:
    """Return the interval as words: "from 0 to 1", "above 0 and at most 10"."""
    low, high, from_low, to_high = interval(text)
    if from_low and to_high:
        return f"from {_plain(low)} to {_plain(high)}"
    return f"{'at least' if from_low else 'above'} {_plain(low)} and {'at most' if to_high else 'below'} {_plain(high)}"


def check(value: Any, text: str, called: str) -> None:
    """Check that a number is finite and in the interval ("" = any finite one). Raises `BadInput`."""
    if text and not within(value, text):
        raise BadInput(f"{called} must be {words(text)}, got {short(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{called} must be a finite number, got {value}")


def short(value: Any, length: int = 60) -> str:
    """Return a value as text for a message, cut off where it is long."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        shown = "a number of thousands of digits"
    return shown if len(shown) <= length else f"{shown[:length]}…"


def _plain(number: float) -> str:
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:g}"


__all__ = ["Ranges", "check", "interval", "short", "within", "words"]
