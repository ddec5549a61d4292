"""Judge: a classifier that says what an image shows. Each file in `judges/` registers one under its file name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.errors import BadInput, unknown
from efface.util.values import Value

Judged = Literal["object", "style"]  # the kinds of thing that a judge can name


class Profile(Value):
    """Identify the judge behind a score. Scores of different profiles are not comparable.

    evaluator: name of the judge. version: of its code. sha256: of the weights of each of its networks, 16 digits.
    input: width of the images it reads, px. classes: number of objects it tells apart. statistic: how the
    verdict is taken. threshold: the probability a verdict needs, None where the largest one decides.
    """

    evaluator: str
    version: int = 1
    sha256: dict[str, str] = Field(default_factory=dict)
    input: int = 0
    classes: int = 0
    statistic: str = "top-k of the softmax"
    threshold: float | None = None


class Judge(ABC):
    """Base class of judges, which classify the object and the style of an image.

    classes, styles: the names it knows, in the order of its probabilities. Probabilities are differentiable in the
    images when gradients are on, unless `differentiable` is false. A file in `judges/` registers one subclass, which
    also has MODELS, NAMES and `load`.
    """

    KIND: ClassVar[str] = "judges"
    MODELS: ClassVar[tuple[str, ...]] = ()  # the models it judges
    ANY_MODEL: ClassVar[bool] = False  # whether it judges every model, asked for by its file's name
    TAKES_FILE: ClassVar[bool] = False  # whether a path may stand in the place of a name
    TAKES_CONCEPTS: ClassVar[bool] = False  # whether `load` also takes the concepts to tell apart
    NAMES: ClassVar[tuple[str, ...]] = ("judge",)  # of the judges in the file; the first is the default
    ASKED: ClassVar[str] = ""  # the one that attacks may ask, so that the default can say whether they succeeded

    classes: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    differentiable: bool = True
    reads_text: bool = False  # whether it has a CLIP, that is, a `clip_score`
    device: torch.device = torch.device("cpu")  # where it wants its images

    @property
    @abstractmethod
    def profile(self) -> Profile:
        """Return the profile that its scores are reported with."""

    @abstractmethod
    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the probability of every object for images in [0, 1]."""

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        """Return the probability of every style for images in [0, 1]; a judge of no styles returns (n, 0)."""
        return images.new_zeros(len(images), 0)

    def names(self, kind: Judged) -> tuple[str, ...]:
        """Return the names it knows of a kind, in the order of `probabilities`."""
        return tuple(self.styles if kind == "style" else self.classes)

    def probabilities(self, images: Float[Tensor, "n 3 h w"], kind: Judged = "object") -> Float[Tensor, "n names"]:
        """Return the probability of every name of a kind for images in [0, 1]."""
        return self.style_probs(images) if kind == "style" else self.objects(images)

    def index(self, name: str, kind: Judged = "object") -> int:
        """Return the column of a name; raises `UnknownName`."""
        known = self.names(kind)
        if name not in known:
            raise unknown(f"{'style' if kind == 'style' else 'class'} of the judge", name, known)
        return known.index(name)

    def clip_score(self, images: Float[Tensor, "n 3 h w"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the cosine of each image with its text, -1 to 1; raises `BadInput` for a judge without a CLIP."""
        raise BadInput(f"the judge {self.profile.evaluator} has no CLIP, so it cannot compare images with texts")

    def image_features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim"]:
        """Return the CLIP's unit vector of each image; raises `BadInput` for a judge without a CLIP."""
        raise BadInput(f"the judge {self.profile.evaluator} has no CLIP, so it has no image vectors")

    @classmethod
    def load(cls, model: str, name: str = "") -> "Judge":
        """Load the judge of a model by its name, one of NAMES; "" is the first. Raises `BadFile`, `UnknownName`."""
        raise BadInput(f"{cls.__name__} is made by hand: there is no judge of {model} to load by name {name!r}")


def judge_of(model: str, name: str = "", concepts: Sequence[Concept] = ()) -> Judge:
    """Return the judge of a model ("mini", "digits:mnist"), found among the files of `judges/`.

    name: of the judge, where a model has several; "" is the default. A judge of any model is named by its file,
    with one of its own names or a file of yours behind a colon ("nudenet", "nudenet:unlearndiff", "resnet50:FILE").
    concepts: to tell apart, for judges that take any names; () for those of the model's table.
    Raises `BadInput` for a model that has none, `UnknownName` for a judge it does not have, `BadFile`.
    """
    cls, own = find_judge(model, name)
    return cls.load(model, own, concepts) if cls.TAKES_CONCEPTS else cls.load(model, own)  # type: ignore[call-arg]


def find_judge(model: str, name: str = "") -> tuple[type[Judge], str]:
    """Return the class of a judge and its own name, without loading it. Raises as `judge_of`."""
    file, _, own = name.partition(":")
    if file in registry.names("judges") and (cls := registry.get("judges", file)).ANY_MODEL:
        if own and own not in cls.NAMES and not cls.TAKES_FILE:
            raise unknown(f"judge of {file}", own, cls.NAMES)
        return cls, own or cls.NAMES[0]
    known: list[str] = []
    anywhere: list[str] = []
    for file in registry.names("judges"):
        cls = registry.get("judges", file)
        if model in cls.MODELS:
            if name and name not in cls.NAMES:
                free = [one for one in registry.names("judges") if registry.get("judges", one).ANY_MODEL]
                raise unknown(f"judge of {model}", name, (*cls.NAMES, *free))
            return cls, name or cls.NAMES[0]
        known += cls.MODELS
        anywhere += [file] if cls.ANY_MODEL else []
    others = f"; of any model, by name: {', '.join(anywhere)}" if anywhere else ""
    raise BadInput(f"no judge {name + ' ' if name else ''}for {model}: there are judges for {', '.join(known)}{others}")


def asked_of(model: str, decides: Judge | None = None) -> Judge | None:
    """Return the judge of a model that attacks may ask, which is not its default.

    decides: on what they find. None where there is no other.
    """
    for file in registry.names("judges"):
        cls = registry.get("judges", file)
        if model in cls.MODELS and cls.ASKED:
            found = cls.load(model, cls.ASKED)
            return None if decides is not None and found.profile == decides.profile else found
    return None


__all__ = ["Judge", "Judged", "Profile", "asked_of", "find_judge", "judge_of"]
