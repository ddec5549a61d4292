"""What an export says of itself: what was written, how near it is, and how that was checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Compare = Literal["auto", "outputs", "weights"]
LARGEST = 1_500_000_000  # values of a denoiser that "auto" loads to compare outputs: 6 GB


@dataclass(frozen=True)
class Report:
    """Say what was written and how it was checked.

    format: its name. path: the file or folder. size: in bytes. weights: the relative error of the difference of each
    weight that was written, Frobenius norm. error: the same over all weights. rank: of a LoRA, 0 for others.
    tools: those that use every key. checks: what was compared, in words.
    """

    format: str
    path: Path
    size: int
    weights: Mapping[str, float] = field(repr=False)
    error: float = 0.0
    rank: int = 0
    dtype: str = ""
    tools: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """Hold what `Export.write` knows of the file.

    planned: the relative error of each weight that its rank leaves. rank: of a LoRA. dtype: of the
    tensors.
    """

    planned: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0
    dtype: str = ""


@dataclass(frozen=True)
class Verified:
    """Hold what `Export.verify` found: relative errors by weight, in all, and what was compared."""

    weights: Mapping[str, float]
    error: float
    checks: tuple[str, ...]
