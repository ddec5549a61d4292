"""What a method makes besides its edit and must keep out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from efface.edit import Edit

_asides: ContextVar[dict[str, Edit] | None] = ContextVar("asides", default=None)


@contextmanager
def asides() -> Iterator[dict[str, Edit]]:
    """Collect what methods make besides their edit and keep out of it: KPOP's "key"."""
    token = _asides.set(found := {})
    try:
        yield found
    finally:
        _asides.reset(token)


def put_aside(name: str, edit: Edit) -> None:
    """Hand something to the `asides` around this call; it is lost when there are none."""
    if (found := _asides.get()) is not None:
        found[name] = edit
