"""Every error that efface raises on purpose: one line that says what was wrong, what was given and what is known."""

from collections.abc import Iterable
from difflib import get_close_matches


class EffaceError(Exception):
    """Base class of efface's errors; the command line prints the message and exits with 2."""


class UnknownName(EffaceError):
    """Unknown name of a method, field, concept, model or solver."""


class BadFile(EffaceError):
    """File that is missing, damaged, of another format, or refused because it is a pickle."""


class BadModel(EffaceError):
    """Model that cannot be loaded, or that lacks a part or weight that is needed."""


class BadEdit(EffaceError):
    """Edit that does not fit the model, has a newer file format, or cannot be combined in this way."""


class BadInput(EffaceError):
    """Value outside its range: an empty prompt, a negative number of steps, a seed out of range."""


class Refused(BadInput):
    """Model that an attack cannot work on, such as one that lacks what the attack changes or reads."""


class WriteError(EffaceError):
    """File that cannot be written; no partial file is left behind."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """Return an `UnknownName` error that gives the nearest match and, when they are few, all known names."""
    names = sorted(set(known))
    given = given if len(given) <= 200 else f"{given[:200]}…"
    near = get_close_matches(given, names, n=1, cutoff=0.5) or [n for n in names if n.lower() == given.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if not names:
        return UnknownName(f"unknown {kind} {given!r}{hint} (none are known)")
    shown = ", ".join(names[:24]) + (f" and {len(names) - 24} more" if len(names) > 24 else "")
    return UnknownName(f"unknown {kind} {given!r}{hint} (known: {shown})")
