"""Cache of matrices that are costly to compute: in memory, and on disk under the cache folder."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from efface.util.kept import kept

LIMIT = 8  # matrices in memory
_memory: OrderedDict[str, Tensor] = OrderedDict()


def remembered(key: str, make: Callable[[], Tensor], disk: bool = False) -> Tensor:
    """Return the matrix of a key from memory or, if `disk`, from the cache folder; else compute it.

    key: 64 hex digits that stand for everything the matrix depends on. A cache folder that cannot be read or
    written is ignored.
    """
    if key in _memory:
        _memory.move_to_end(key)
        return _memory[key]
    value = kept("gram", {"key": key}, lambda: {"matrix": make()})["matrix"] if disk else make()
    _memory[key] = value
    while len(_memory) > LIMIT:
        _memory.popitem(last=False)
    return value


def forget() -> None:
    """Empty the memory (not the disk)."""
    _memory.clear()
