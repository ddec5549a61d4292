"""Metric: scores images, sets of images or an edit. Each file in `metrics/` registers one under its file name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.edits.edit import Edit
from efface.errors import BadInput, unknown
from efface.judge import Judge, Judged
from efface.models.model import Model
from efface.query import Query
from efface.util.ranges import Ranges
from efface.util.weights import sha256_file

M = TypeVar("M", bound="Metric")
Need = Literal["images", "original", "reference", "texts", "queries", "labels", "judge", "model", "edit"]
Better = Literal["high", "low", "as its group"]  # the last: low for what should go, high for what should stay
WORDS: dict[str, str] = {
    "images": "images",
    "original": "the original model's images of the same prompts and seeds",
    "reference": "a reference set of images",
    "texts": "the prompts",
    "queries": "the queries",
    "labels": "the names of what was asked for",
    "judge": "a judge",
    "model": "the model before the edit",
    "edit": "the edit",
}


@dataclass(frozen=True, eq=False)
class Samples:
    """Hold the inputs of metrics; each metric declares which of them it needs.

    images: what is scored, in [0, 1]. original: the same prompts and seeds by the model before the edit.
    reference: other images to compare a whole set with. texts: the prompt of each image. queries: of each image, whose
    prompts may be learned vectors. labels, kinds: the name that each image should show, and whether it is an object or
    a style.
    judge: the judge. model, edit: the model before the edit, and the edit.
    Raises `BadInput` unless texts, queries, labels and kinds are one per image; without images, one per query.
    """

    images: Float[Tensor, "n 3 h w"] | None = None
    original: Float[Tensor, "n 3 h w"] | None = None
    reference: Float[Tensor, "m 3 H W"] | None = None
    texts: Sequence[str] = ()
    queries: Sequence[Query] = ()
    labels: Sequence[str] = ()
    kinds: Sequence[Judged] = ()
    judge: Judge | None = None
    model: Model | None = None
    edit: Edit | None = None
    known: dict[Judged, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n, things = (
            len(self.queries if self.images is None else self.images),
            "queries" if self.images is None else "images",
        )
        for name in ("original", "texts", "queries", "labels", "kinds"):
            given = getattr(self, name)
            if given is not None and len(given) not in ((n,) if name == "original" else (0, n)):
                raise BadInput(f"{name}: one for each of the {n} {things}, got {len(given)}")

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
    RANGES: the range of every number among its fields, as in `Method`. FILES: its fields that name files or folders.
    USUAL: whether it is computed when no metric is named.
    """

    KIND: ClassVar[str] = "metrics"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    RANGES: ClassVar[Ranges] = {}
    NEEDS: ClassVar[tuple[Need, ...]] = ("images",)
    RANGE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    BETTER: ClassVar[Better] = "high"
    PER_IMAGE: ClassVar[bool] = True
    PACKAGE: ClassVar[str] = ""
    FILES: ClassVar[tuple[str, ...]] = ()
    USUAL: ClassVar[bool] = True

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

    @classmethod
    def preset(cls: type[M], name: str = "", **override: Any) -> M:
        """Build the metric from a named preset ("" = the defaults) with some fields overridden.

        Raises `UnknownName` for a preset or a field that does not exist, `BadInput` for a value out of range.
        """
        if name and name not in cls.PRESETS:
            raise unknown(f"preset of {registry.name_of(cls)}", name, cls.PRESETS)
        return registry.build(cls, **{**(cls.PRESETS[name] if name else {}), **override})

    @property
    def label(self) -> str:
        """Return what its scores are called in records: "ssim", "ssim:all-but-one" or "presence k=5"; no files."""
        plain = {f.name: getattr(self, f.name) for f in registry.describe(type(self)) if f.name not in self.FILES}
        usual = {f.name: f.default for f in registry.describe(type(self)) if f.name in plain}
        named = {name: {**usual, **values} for name, values in self.PRESETS.items()}
        name = registry.name_of(type(self))
        if plain == usual:
            return name
        known = next((preset for preset, values in named.items() if values == plain), "")
        return (
            f"{name}:{known}" if known else " ".join([name, *(f"{k}={v}" for k, v in plain.items() if v != usual[k])])
        )

    def instrument(self, judge: Judge | None = None) -> dict[str, Any]:
        """Return all that a score depends on besides the images, as JSON values: scores of others are not comparable.

        Files are named by their sha256, 16 digits. Raises `BadFile` for a file that is not there.
        """
        plain = {f.name: getattr(self, f.name) for f in registry.describe(type(self))}
        paths = {name: plain.pop(name) for name in self.FILES}
        files = {name: sha256_file(Path(path))[:16] for name, path in paths.items() if path}
        judged = {"judge": judge.profile.model_dump()} if judge is not None and "judge" in self.NEEDS else {}
        return {"metric": registry.name_of(type(self)), **registry.to_json(plain), **files, **judged}

    def missing(self, samples: Samples) -> list[str]:
        """Return descriptions of the inputs or packages that are missing; [] when it can be computed."""
        lacking = [WORDS[need] for need in samples.missing(self.NEEDS)]
        return lacking + ([self._install()] if self.PACKAGE and not installed(self.PACKAGE) else [])

    def _install(self) -> str:
        return f"the package {self.PACKAGE}, which is not installed: pip install 'efface[eval]'"


@dataclass(frozen=True)
class SetMetric(Metric):
    """Base class of metrics that compare two sets of images by vectors of them.

    An evaluation takes the vectors batch by batch and keeps only these, so that sets may be larger than the memory.
    """

    NEEDS: ClassVar[tuple[Need, ...]] = ("images", "original", "judge")
    RANGE: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    BETTER: ClassVar[Better] = "low"
    PER_IMAGE: ClassVar[bool] = False

    @abstractmethod
    def vectors(self, images: Float[Tensor, "n 3 h w"], judge: Judge | None) -> Float[Tensor, "n dim"]:
        """Return one vector per image."""

    @abstractmethod
    def distance(self, made: Float[Tensor, "n dim"], other: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
        """Return how far the sets are apart; each has two images or more."""

    def others(self, original: Float[Tensor, "n dim"], judge: Judge | None) -> Float[Tensor, "m dim"]:
        """Return the vectors to compare with: those of the original model's images."""
        return original

    def measure(self, samples: Samples) -> Float[Tensor, ""]:
        """Return one number for all images. Raises `BadInput` for fewer than two."""
        assert samples.images is not None
        assert samples.original is not None
        if len(samples.images) < 2:
            raise BadInput(f"the metric {type(self).__name__} compares sets of two images or more, got 1")
        made, original = (self.vectors(x, samples.judge) for x in (samples.images, samples.original))
        return self.distance(made, self.others(original, samples.judge))


def lacking(metric: Metric) -> list[str]:
    """Return the files and packages that a metric lacks on this machine, whatever it is given to measure."""
    return [what for what in metric.missing(Samples()) if what not in WORDS.values()]


def installed(package: str) -> bool:
    """Return whether a package can be imported."""
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: a module without a spec, or None in its place
        return False


__all__ = ["Better", "Metric", "Need", "Samples", "SetMetric", "installed", "lacking"]
