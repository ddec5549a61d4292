"""Metric: scores images or an edit. Each file in `metrics/` registers one under its file name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.judge import Judge, Judged
from efface.models.model import Model
from efface.util.ranges import Ranges

Need = Literal["images", "original", "reference", "texts", "labels", "judge", "model", "edit"]
Better = Literal["high", "low", "as its group"]  # the last: low for what should go, high for what should stay
WORDS: dict[str, str] = {
    "images": "images",
    "original": "the original model's images of the same prompts and seeds",
    "reference": "a reference set of images",
    "texts": "the prompts",
    "labels": "the names of what was asked for",
    "judge": "a judge",
    "model": "the model before the edit",
    "edit": "the edit",
}


@dataclass(frozen=True, eq=False)
class Samples:
    """Hold the inputs of metrics; each metric declares which of them it needs.

    images: what is scored, in [0, 1]. original: the same prompts and seeds by the model before the edit.
    reference: other images to compare a whole set with. texts: the prompt of each image.
    labels, kinds: the name that each image should show, and whether it is an object or a style.
    judge: the judge. model, edit: the model before the edit, and the edit.
    Raises `BadInput` unless texts, labels and kinds are one per image.
    """

    images: Float[Tensor, "n 3 h w"] | None = None
    original: Float[Tensor, "n 3 h w"] | None = None
    reference: Float[Tensor, "m 3 H W"] | None = None
    texts: Sequence[str] = ()
    labels: Sequence[str] = ()
    kinds: Sequence[Judged] = ()
    judge: Judge | None = None
    model: Model | None = None
    edit: Edit | None = None
    known: dict[Judged, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n = 0 if self.images is None else len(self.images)
        for name in ("original", "texts", "labels", "kinds"):
            given = getattr(self, name)
            if given is not None and len(given) not in ((n,) if name == "original" else (0, n)):
                raise BadInput(f"{name}: one for each of the {n} images, got {len(given)}")

    def missing(self, needs: Sequence[Need]) -> list[Need]:
        """Return which of these needs are not there."""
        return [need for need in needs if (v := getattr(self, need)) is None or (isinstance(v, Sequence) and not v)]

    def kind_of(self, index: int) -> Judged:
        """Return whether an image is judged for an object or a style."""
        return self.kinds[index] if self.kinds else "object"

    def probabilities(self, kind: Judged) -> Float[Tensor, "n names"]:
        """Return the judge's probabilities for every image; computed once and shared by all metrics."""
        if kind not in self.known:
            assert self.judge is not None
            assert self.images is not None
            self.known[kind] = self.judge.probabilities(self.images, kind).cpu()
        return self.known[kind]


@dataclass(frozen=True)
class Metric(ABC):
    """Base class of metrics: calling one returns a score per image, (n,), or one for all images, ().

    NEEDS: what it asks of `Samples`. RANGE: the lowest and the highest value. BETTER: which end is good.
    PER_IMAGE: whether it returns one number per image. PACKAGE: an optional package that it needs, or "".
    RANGES: the range of every number among its fields, as in `Method`.
    """

    KIND: ClassVar[str] = "metrics"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images",)
    RANGE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    BETTER: ClassVar[Better] = "high"
    PER_IMAGE: ClassVar[bool] = True
    PACKAGE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the fields; a subclass that checks more calls this first. Raises `BadInput` or `UnknownName`."""
        registry.check_fields(self)

    def __call__(self, samples: Samples) -> Float[Tensor, " n"] | Float[Tensor, ""]:
        """Return the scores, fp32. Raises `BadInput` when something it needs is missing."""
        missing = self.missing(samples)
        if missing:
            raise BadInput(f"the metric {type(self).__name__} needs {' and '.join(missing)}")
        with torch.no_grad():
            return self.measure(samples).float()

    @abstractmethod
    def measure(self, samples: Samples) -> Float[Tensor, " n"] | Float[Tensor, ""]:
        """Return the scores; everything in NEEDS is there."""

    def missing(self, samples: Samples) -> list[str]:
        """Return descriptions of the inputs or packages that are missing; [] when it can be computed."""
        lacking = [WORDS[need] for need in samples.missing(self.NEEDS)]
        return lacking + ([self._install()] if self.PACKAGE and not _installed(self.PACKAGE) else [])

    def _install(self) -> str:
        return f"the package {self.PACKAGE}, which is not installed: pip install 'efface[eval]'"


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: a module without a spec, or None in its place
        return False


__all__ = ["Better", "Metric", "Need", "Samples"]
