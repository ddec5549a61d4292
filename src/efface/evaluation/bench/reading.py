"""What is wrong with a file of settings, collected with the lines it is on, so that all of it is said at once."""

from collections.abc import Callable, Sequence
from typing import Any

from efface.errors import BadInput, EffaceError
from efface.util.ranges import short


class Reading:
    """Collect everything that is wrong with a text, each with the line it is on."""

    def __init__(self, text: str, where: str):
        self.lines, self.where, self.wrong = text.splitlines(), where, list[tuple[int, str]]()
        self.begin = 0  # line to look for hints from

    def add(self, error: object, *hints: str) -> None:
        """Note an error on the line of the last hint."""
        text = str(error)
        if "did you mean" in text:  # one message for all: the nearest match says enough
            text = text.partition(" (known: ")[0]
        self.wrong.append((self.line(*hints), text))

    def line(self, *hints: str) -> int:
        """Return the number of the first line below the hints before it that holds each of them; 0 if none does."""
        at = self.begin if hints else 0
        for hint in hints:
            found = (i for i in range(max(at - 1, 0), len(self.lines)) if hint in self.lines[i].partition("#")[0])
            at = next(found, at - 1) + 1
        return at

    def attempt(self, call: Callable[[], Any], *hints: str) -> Any:
        """Return what a call returns; None, after noting its error, when it raises one of ours."""
        try:
            return call()
        except EffaceError as error:
            self.add(error, *hints)
            return None

    def list_of(self, key: str, value: Any) -> Sequence[Any]:
        """Return a list; () after noting that it is none."""
        if isinstance(value, list | tuple):
            return value
        self.add(f"{key} is a list, got {short(value)}", key)
        return ()

    def finish(self) -> None:
        """Raise `BadInput` with all that was noted, if anything."""
        if self.wrong:
            told = "; ".join((f"line {line}: " if line else "") + error for line, error in sorted(self.wrong))
            count = f"{len(self.wrong)} mistakes: " if len(self.wrong) > 1 else ""
            raise BadInput(f"{self.where}: {count}{told}")


__all__ = ["Reading"]
