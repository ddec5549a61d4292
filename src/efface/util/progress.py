"""One progress bar for the whole library; silent unless standard error is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_quiet: ContextVar[bool] = ContextVar("efface_quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence every progress bar started inside the block."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def progress(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` while a bar on standard error shows how far it is.

    A bar inside another bar's loop stays silent, and so does every bar when standard error is no terminal.
    """
    if _quiet.get() or not sys.stderr.isatty():
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with quiet(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(iterable, total=total, description=label)
