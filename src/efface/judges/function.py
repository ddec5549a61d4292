"""Function: a judge of your own, from Python: any function from images to probabilities of names."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadInput
from efface.judge import Judge, Profile
from efface.util.ranges import short

Call = Callable[[Tensor], Tensor]


class FunctionJudge(Judge):
    """Judge images by a function.

    call: from images (n, 3, h, w) in [0, 1] to probabilities (n, names) of objects. names: their names. name, version:
    of the judge, for its profile. styles, style_call: the same for styles. weights: sha256 by name of the networks that
    it uses; without any, the profile has that of its source code. differentiable: whether attacks may ask gradients.

    >>> judge = FunctionJudge(brightness, ["light", "dark"], "brightness")
    """

    def __init__(
        self, call: Call, names: Sequence[str], name: str, version: int = 1, styles: Sequence[str] = (),
        style_call: Call | None = None, weights: dict[str, str] | None = None, differentiable: bool = False,
    ):  # fmt: skip
        """Raises `BadInput` without names or a name of the judge, for names twice, for a function without source."""
        if not name.strip():
            raise BadInput("a judge needs a name: scores of different judges are told apart by it")
        if not names or len({*names, *styles}) < len(names) + len(styles):
            raise BadInput(f"a judge needs names, each once, got {short([*names, *styles])}")
        if bool(styles) != (style_call is not None):
            raise BadInput("styles and style_call: give both or neither")
        self.classes, self.styles, self.differentiable = tuple(names), tuple(styles), differentiable
        self._calls, self._name, self._version = (call, style_call), name.strip(), version
        self._weights = dict(weights or {}) or {"source": _sha256(call)}

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return the function's probabilities. Raises `BadInput` when they are none."""
        return self._checked(self._calls[0], images, len(self.classes))

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        """Return the probabilities of styles, (n, 0) without any. Raises `BadInput` when they are none."""
        call = self._calls[1]
        return super().style_probs(images) if call is None else self._checked(call, images, len(self.styles))

    def _checked(self, call: Call, images: Tensor, count: int) -> Tensor:
        found: Any = call(images)
        shape = tuple(getattr(found, "shape", ()))
        if shape != (len(images), count):
            raise BadInput(f"the judge {self._name} should give ({len(images)}, {count}) probabilities, gave {shape}")
        found = torch.as_tensor(found).float()
        if not bool(((found >= 0) & (found <= 1 + 1e-4)).all()):
            raise BadInput(f"the judge {self._name} should give probabilities from 0 to 1")
        return found

    @property
    def profile(self) -> Profile:
        """Return the profile that its scores are reported with."""
        return self._profile

    @cached_property
    def _profile(self) -> Profile:
        return Profile(
            evaluator=self._name, version=self._version, sha256=self._weights, classes=len(self.classes),
            statistic="top-k of a function",
        )  # fmt: skip


def _sha256(call: Call) -> str:
    try:
        return hashlib.sha256(inspect.getsource(call).encode()).hexdigest()[:16]
    except (OSError, TypeError) as error:
        raise BadInput(
            "a judge's function has no source to tell it from others by: give weights = {name: sha256}"
        ) from error
