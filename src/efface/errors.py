"""Every error that efface raises on purpose: one line that says what was wrong, what was given and what is known."""

from collections.abc import Iterable
from difflib import get_close_matches


class EffaceError(Exception):
    """Be the base of all errors a user can cause; the command line prints its text and exits with 2."""


class UnknownName(EffaceError):
    """Report a name (method, field, concept, model, solver) that is not known."""


class BadFile(EffaceError):
    """Report a file that is missing, truncated, foreign, or of a kind that is refused (pickle)."""


class BadModel(EffaceError):
    """Report a model that cannot be loaded or that lacks what was asked of it."""


class BadEdit(EffaceError):
    """Report an edit that does not fit: another model, a future format, an operation without meaning."""


class BadInput(EffaceError):
    """Report a value outside its range: an empty prompt, a negative number of steps, a seed out of range."""


class WriteError(EffaceError):
    """Report that a file could not be written; nothing half-written is left behind."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """Make (not raise) an `UnknownName` that names the nearest match and, when they are few, all known names."""
    names = sorted(set(known))
    near = get_close_matches(given, names, n=1, cutoff=0.5) or [n for n in names if n.lower() == given.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if not names:
        return UnknownName(f"unknown {kind} {given!r}{hint} (none are known)")
    shown = ", ".join(names[:24]) + (f" and {len(names) - 24} more" if len(names) > 24 else "")
    return UnknownName(f"unknown {kind} {given!r}{hint} (known: {shown})")
