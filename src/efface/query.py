"""Query: the prompt, seed and sampling settings of one image."""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from efface.context import Context
from efface.errors import BadInput, unknown
from efface.util.files import sha256_tensors
from efface.util.ranges import GUIDANCE, check, short
from efface.util.seeds import check_seed
from efface.util.solvers import SOLVERS


@dataclass(frozen=True, eq=False)
class Query:
    """Describe one image to generate.

    prompt: the text; "" is the unconditional prompt.
    seed: of its initial noise, 0 to 2^63 - 1.
    steps: of the solver, 1 or more.
    guidance: classifier-free guidance scale, -1000 to 1000; 1 means none.
    context: one row, used in place of the encoded prompt; without a pooled vector the prompt's own is used.
    solver: "" for the model's own, else a name in `efface.util.solvers.SOLVERS`.
    latents: (1, ch, h, w), the denoiser's input at step `start`, in place of noise from the seed: an image-to-image
        query starts late, from a noised picture.
    start: the solver's step to begin at, 0 to steps - 1; above 0 with `latents` only.
    embedded: the guidance scale that a model reads as a number (FLUX.1 dev), -1000 to 1000, beside `guidance`, which is
        then 1; by default 3.5, diffusers' own. Models that read none refuse it.

    >>> queries = [Query("a church in the style of neon", seed=seed) for seed in range(8)]
    """

    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float | int = 7.5
    context: Context | None = None
    solver: str = ""
    latents: Tensor | None = None
    start: int = 0
    embedded: float | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise BadInput(f"a prompt is a string, got {short(self.prompt)}")
        check_seed(self.seed)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise BadInput(f"steps is a whole number from 1 to 1000, got {short(self.steps)}")
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, int | float):
            raise BadInput(f"guidance is a finite number, got {short(self.guidance)}")
        check(self.guidance, GUIDANCE, "guidance")
        if self.embedded is not None:
            check(self.embedded, GUIDANCE, "embedded")
        if not isinstance(self.solver, str) or (self.solver and self.solver not in SOLVERS):
            raise unknown("solver", str(self.solver), SOLVERS)
        if self.context is not None and not isinstance(self.context, Context):
            raise BadInput(f"the context of a query is a Context, got {short(self.context)}")
        if self.context is not None and len(self.context) != 1:
            raise BadInput(f"the context of a query is one row, got {len(self.context)}")
        self._check_start()

    def _check_start(self) -> None:
        latents: Any = self.latents
        if latents is not None and (not isinstance(latents, Tensor) or latents.dim() != 4 or len(latents) != 1):
            raise BadInput(f"the latents of a query are a tensor (1, ch, h, w), got {short(latents)}")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or not 0 <= self.start < self.steps:
            raise BadInput(f"start is a step from 0 to {self.steps - 1}, got {short(self.start)}")
        if self.start and latents is None:
            raise BadInput(f"a query that starts at step {self.start} needs latents to start from")

    @property
    def key(self) -> str:
        """Return a stable JSON string: equal for equal queries, across runs and machines."""
        values: dict[str, Any] = {"prompt": self.prompt, "seed": self.seed, "steps": self.steps}
        values |= {"guidance": float(self.guidance), "solver": self.solver, "embeds": self._context_hash}
        if self.latents is not None:
            values |= {"latents": sha256_tensors({"": self.latents}), "start": self.start}
        if self.embedded is not None:
            values |= {"embedded": float(self.embedded)}
        return json.dumps(values, sort_keys=True)

    @property
    def _context_hash(self) -> str | None:
        if self.context is None:
            return None
        own = self.context
        named = {"embeds": own.tokens[0], "pooled": own.pooled, "guidance": own.guidance}
        return sha256_tensors({name: value for name, value in named.items() if value is not None})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)
