"""Safety filter: replace an image by a black one where a detector sees the concept.

Part of the Stable Diffusion release, described by Rando et al. 2022, Red-Teaming the Stable
Diffusion Safety Filter (https://arxiv.org/abs/2210.04610). Thresholds are those of published evaluations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Hooks
from efface.errors import BadInput, unknown
from efface.judge import Judged
from efface.judges.nudenet import EXPOSED, LEAST, WIDE, NudeNetJudge
from efface.method import InferenceMethod
from efface.models.model import Model
from efface.util.ranges import SHARE, Ranges

if TYPE_CHECKING:
    from efface.judges.mini import MiniJudge

Present = Callable[[Float[Tensor, "b 3 h w"]], Bool[Tensor, " b"]]


@dataclass(frozen=True)
class SafetyFilter(InferenceMethod):
    """Replace images on which a detector sees a concept by black ones; sampling itself is not changed.

    detector: judge (mini's own classifiers of objects and styles), clip (mini's CLIP, zero-shot among the names of all
        objects and styles; not used by the judge) or nudenet (exposed body parts, whatever the concept's name;
        needs the package nudenet)
    threshold: probability from which a concept counts as seen; by default a concept counts when it is the judge's
        first choice, and from 0.45 with nudenet; clip takes first choices only
    parts: what nudenet looks for: exposed (breasts, genitalia, buttocks, anus) or wide (also feet, belly, armpits)
    """

    detector: Literal["judge", "clip", "nudenet"] = "judge"
    threshold: float | None = None
    parts: Literal["exposed", "wide"] = "exposed"

    RANGES: ClassVar[Ranges] = {"threshold": SHARE}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "mini": {"detector": "clip"},  # the judge would evaluate its own decisions
        "unlearndiff": {"detector": "nudenet", "threshold": 0.45, "parts": "wide"},
        "rece": {"detector": "nudenet", "threshold": 0.6, "parts": "wide"},
    }
    QUICK: ClassVar[dict[str, Any]] = {"threshold": 0.0}  # blanks everything

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.detector == "clip" and self.threshold is not None:
            raise BadInput(f"clip has no threshold: leave it out, got {self.threshold}")
        least = LEAST if self.detector == "nudenet" else 0.0
        if self.threshold is not None and not least <= self.threshold <= 1:
            raise BadInput(f"threshold must be from {least:g} to 1 for {self.detector}, got {self.threshold}")

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Return the guard; raises `UnknownName` for a concept unknown to the judge, `BadInput` or `BadFile`."""
        self._present(model, erase)
        return super().fit(model, erase, preserve, seed)

    def start(self, model: Model, erase: Sequence[Concept]) -> Hooks:
        """Return hooks that replace an image by black where a concept is seen."""
        present = self._present(model, erase)

        def blank(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
            seen = present(images.float().cpu()).to(images.device)
            return images.masked_fill(seen[:, None, None, None], 0.0)

        return Hooks(filter=blank)

    def _present(self, model: Model, erase: Sequence[Concept]) -> Present:
        if self.detector == "nudenet":
            judge = NudeNetJudge(
                WIDE if self.parts == "wide" else EXPOSED, 0.45 if self.threshold is None else self.threshold
            )
            return lambda images: judge.objects(images)[:, 0] > 0
        return _judged(model, erase, self.threshold, self.detector == "clip")


def _judged(model: Model, erase: Sequence[Concept], threshold: float | None, clip: bool) -> Present:
    """Return whether mini's judges, or its CLIP, see one of the concepts."""
    from efface.judges.mini import judge

    with torch.random.fork_rng(devices=[]):  # networks draw initial weights when they are built
        judging = judge("mini")
    size = model.family.image_size
    if size > judging.size:  # the judge was trained on mini's images and not on photographs
        raise BadInput(
            f"the judge reads mini's images of {judging.size} pixels, this model generates {size}: use detector nudenet"
        )
    objects, styles = (
        (_zero_shot(judging, "object"), _zero_shot(judging, "style"))
        if clip
        else (judging.objects, judging.style_probs)
    )
    kinds = {
        "object": (objects, judging.classes, [c.name for c in erase if c.kind != "style"]),
        "style": (styles, judging.styles, [c.name for c in erase if c.kind == "style"]),
    }
    columns: dict[str, list[int]] = {}
    for kind, (_, known, names) in kinds.items():
        for name in names:
            if name not in known:
                raise unknown(f"{kind} of the judge", name, known)
        columns[kind] = [known.index(name) for name in names]

    def present(images: Tensor) -> Tensor:
        seen = torch.zeros(len(images), dtype=torch.bool)
        for kind, (probabilities, _, names) in kinds.items():
            if names:
                p = probabilities(images)
                least = p.amax(1, keepdim=True) if threshold is None else threshold
                seen |= (p[:, columns[kind]] >= least).any(1)
        return seen

    return present


def _zero_shot(judging: "MiniJudge", kind: Judged) -> Callable[[Tensor], Tensor]:
    """Return a function from images (n, 3, h, w) to their similarities (n, names) to a prompt of each name."""
    texts = judging.texts(kind)
    return lambda images: judging.zero_shot(images, texts)
