"""Parsers of the command line: ranges of seeds, expressions of edits, flags with several values."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from efface.errors import BadInput, EffaceError, unknown
from efface.util.files import check_safetensors, safetensors_meta
from efface.util.seeds import check_seed

if TYPE_CHECKING:
    from efface.edits.edit import Edit

MAX_SEEDS = 100_000
MAX_SCALE = 1e6  # of an edit in an expression
MAX_DEPTH, MAX_TERMS = 50, 500  # brackets and minus signs of an expression

HOW_SEEDS = "write 0:8 for 0 to 7, or 0,3,5"
HOW_EDITS = 'write a file, or a sum such as "0.5*a.safetensors + b.safetensors"'


def seeds(text: str) -> tuple[int, ...]:
    """Read "0:8" (0 to 7), "0,3,5", "7" or a mixture, in the order given.

    Raises BadInput for an empty or backward range, a number twice, or one outside 0 … 2^63 - 1.
    """
    given = f"--seeds {text!r}" if len(text) <= 80 else f"--seeds {text[:80]!r}…"
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:\s*:\s*(-?\d+))?\s*", part)
        if not match:
            raise BadInput(f"{given} is not a range of seeds: {HOW_SEEDS}")
        first, stop = _number(match[1]), _number(match[2] or match[1]) + (match[2] is None)
        check_seed(first, f"{given}: a seed")
        if stop <= first:
            raise BadInput(f"{given}: the range {part.strip()} is empty: {HOW_SEEDS}")
        check_seed(stop - 1, f"{given}: a seed")
        if stop - first + len(found) > MAX_SEEDS:
            raise BadInput(f"{given}: more than {MAX_SEEDS} seeds")
        found.extend(range(first, stop))
    if len(set(found)) < len(found):
        raise BadInput(f"{given}: a seed is named twice")
    return tuple(found)


def _number(digits: str) -> int:
    """Return a whole number; one with more digits than Python reads is out of every range."""
    return int(digits) if len(digits) <= 40 else int(digits[:40])


class Term(NamedTuple):
    """Hold one term of an edit expression: scale × the edit in a file."""

    scale: float
    path: Path


# A path runs to the first ".safetensors", so "a-b.safetensors-c.safetensors" is two files, not three.
PATH = re.compile(r"""\s*("[^"]+"|'[^']+'|[^\s()*+'"-][^\s()*'"]*?\.safetensors)""")
NUMBER = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?=[\s*/)]|$)")
SCALE = re.compile(NUMBER.pattern.replace("*/)", "*/)+-"))  # after * or /, where "0.5-b" is a number and a minus


def terms(text: str) -> list[Term]:
    """Read an edit expression into its terms, with every scale multiplied out.

    Grammar: sum = [±] product {± product}; product = factor {* factor | / number}; factor = number | file |
    "(" sum ")". A text that names an existing file is that file, whatever characters it contains.
    Raises BadInput for anything else, and for a product of two files.
    """
    if _is_file(text):
        return [Term(1.0, Path(text))]
    if not re.search(r"\.safetensors\b", text) and not re.search(r"['\"]", text):
        raise BadInput(f"--edit {text[:200]!r}: no such file: {HOW_EDITS}")
    return _Expression(text).parse()


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name can be
        return False


class _Expression:
    """Read one edit expression from left to right, by recursive descent."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def error(self, what: str) -> BadInput:
        shown = self.text if len(self.text) <= 120 else f"{self.text[:120]}…"
        return BadInput(f"edit expression {shown!r}: {what}: {HOW_EDITS}")

    def left(self) -> str:
        return self.text[self.at :].strip()

    def read(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match[1] if match else ""

    def take(self, signs: str) -> str:
        return self.read(re.compile(rf"\s*([{re.escape(signs)}])"))

    def parse(self) -> list[Term]:
        if self.text.count("(") > MAX_DEPTH or self.text.count("-") > MAX_TERMS:
            raise self.error("it is nested too deep, or has too many terms")
        found = self.sum()
        if self.left():
            raise self.error(f"{self.left()[:60]!r} is out of place")
        if not isinstance(found, list):
            raise self.error("it names no file")
        if not all(math.isfinite(term.scale) and abs(term.scale) <= MAX_SCALE for term in found):
            raise self.error(f"a scale must be from -{MAX_SCALE:g} to {MAX_SCALE:g}")
        return found

    def sum(self) -> "list[Term] | float":
        total = _scaled(-1.0 if self.take("-+") == "-" else 1.0, self.product())
        while sign := self.take("+-"):
            right = _scaled(-1.0 if sign == "-" else 1.0, self.product())
            if not isinstance(total, list) or not isinstance(right, list):
                raise self.error("a number cannot be added to an edit")
            total = total + right
        return total

    def product(self) -> "list[Term] | float":
        left = self.factor()
        while sign := self.take("*/"):
            right = self.factor(SCALE)
            if isinstance(right, list):
                if sign == "/":
                    raise self.error("only a number can divide an edit")
                if isinstance(left, list):
                    raise self.error("two edits cannot be multiplied")
                left = _scaled(left, right)
            elif sign == "/" and right == 0:
                raise self.error("it divides by 0")
            else:
                left = _scaled(1 / right if sign == "/" else right, left)
        return left

    def factor(self, number: re.Pattern[str] = NUMBER) -> "list[Term] | float":
        if self.take("("):
            inner = self.sum()
            if not self.take(")"):
                raise self.error("a bracket is not closed")
            return inner
        if self.take("-"):
            return _scaled(-1.0, self.factor(number))
        if value := self.read(number):
            return float(value)
        if path := self.read(PATH):
            return [Term(1.0, Path(path.strip("\"'")))]
        raise self.error(f"cannot read {self.left()[:60]!r}" if self.left() else "it ends too early")


def _scaled(scale: float, value: "list[Term] | float") -> "list[Term] | float":
    if isinstance(value, list):
        return [Term(scale * term.scale, term.path) for term in value]
    return scale * value


def check_files(edits: Iterable[Sequence[Term]]) -> None:
    """Check that files exist and are whole, before a model is loaded. Raises UnknownName or BadFile."""
    for term in (term for edit in edits for term in edit):
        if term.path.is_dir():
            raise BadInput(f"{term.path} is a folder; an edit is one .safetensors file")
        if not term.path.is_file():
            raise _missing(term.path)
        check_safetensors(term.path)


def _is_edit(path: Path) -> bool:
    try:
        return "efface" in safetensors_meta(path)
    except EffaceError:
        return False


def _missing(path: Path) -> Exception:
    near = sorted(file.name for file in path.parent.glob("*.safetensors") if _is_edit(file))
    return unknown("edit file", str(path), [str(path.parent / name) for name in near])


def load(edit: Sequence[Term]) -> "Edit":
    """Load the files of an expression and return the sum."""
    from efface.edits.edit import Edit

    parts = [Edit.load(term.path) for term in edit]
    scaled = [part if term.scale == 1 else term.scale * part for term, part in zip(edit, parts, strict=True)]
    total = scaled[0]
    for part in scaled[1:]:
        total = total + part
    return total


def spread(args: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Repeat a flag before each of its values: --preserve a b -o x  →  --preserve a --preserve b -o x.

    A value ends at the next word that starts with "-" and is not a number. Without this, a second value
    would be read as one more concept to erase.
    """
    out: list[str] = []
    flag, taken = "", 0
    names = set(flags)
    for arg in args:
        if arg in names:
            flag, taken = arg, 0
        elif arg.startswith("-") and not re.match(r"-\.?\d", arg):
            flag = ""
        elif flag and taken:
            out.append(flag)
            taken += 1
        elif flag:
            taken = 1
        out.append(arg)
    return out
