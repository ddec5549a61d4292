"""Summary: what is known of a file or folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Group:
    """Describe the weights of one block that a file changes or holds.

    block: its name. weights: their number. kinds: the last words of their names. how: "rank 3", "dense" or "".
    values: how many numbers are stored for them.
    """

    block: str
    weights: int
    kinds: tuple[str, ...] = ()
    how: str = ""
    values: int = 0


@dataclass(frozen=True)
class Summary:
    """Say what a file or folder is.

    kind: in words ("edit", "key", "finding", "LoRA", …). path, size: of it, in bytes. family: of the model, "" if it
    cannot be told. changes: what it changes or holds, by block. share: the share of the weights that read the text
    which it changes, None where that is not known. made: how and for what it was made. layout: how its keys are named.
    readers: tools that read these names. fits: whether it fits the model that was given, None if none was.
    notes: further facts, in words.
    """

    kind: str
    path: str
    size: int
    family: str = ""
    changes: tuple[Group, ...] = ()
    share: float | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    layout: str = ""
    readers: tuple[str, ...] = ()
    fits: bool | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)
