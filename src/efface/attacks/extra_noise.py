"""Noise-based probe: the prompts as they are, with more noise in the steps of the sampler.

Lu et al. 2025, When Are Concepts Erased From Diffusion Models?, https://arxiv.org/abs/2505.17013: noise leads a
trajectory out of the places where an erasure was learned. Code: https://github.com/kevinlu4588/WhenAreConceptsErased.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

from torch import Tensor

from efface import registry
from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost, denoise_calls
from efface.attacks.search.noisy import noisy
from efface.attacks.search.starts import alike, plain, ranked, seen
from efface.concept import Concept
from efface.errors import BadInput
from efface.query import Query
from efface.training.checkpoints import current
from efface.training.loop import generator
from efface.util.progress import progress
from efface.util.ranges import ROWS, Ranges


@dataclass(frozen=True)
class ExtraNoise(Attack):
    """Generate every prompt with each combination of eta and variance, with DDIM.

    A query holds the denoiser's input at the last step, which has no noise of its own, so that it replays exactly. It
    is the edited model's own trajectory: on another model it says little.

    Args:
        etas: noise of a step, in units of what DDPM adds
        variances: factors on the variance of that noise
        batch: images at once
    """

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
    variances: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)
    batch: int = 32

    NEEDS: ClassVar[tuple[Need, ...]] = ("judge",)
    RANGES: ClassVar[Ranges] = {"etas": "[0, 100]", "variances": "[0, 100]", "batch": ROWS}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "mini": {}}
    QUICK: ClassVar[dict[str, Any]] = {"etas": (0.0, 1.0), "variances": (1.0,)}

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that there are combinations, and steps to add noise to."""
        super().check(target, concept, queries)
        if not self.etas or not self.variances:
            raise BadInput(f"extra_noise needs etas and variances, got {list(self.etas)} and {list(self.variances)}")
        if any(query.steps < 2 for query in queries):
            raise BadInput("extra_noise adds noise between steps: give queries of at least 2 steps, got one of 1")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query for each prompt and combination, ranked by the judge; resumes batch by batch.

        `about` holds the eta and the variance of each.
        """
        model, stored = target.edited, current()
        tries: list[Query] = []
        given: list[int] = []
        pairs: list[tuple[float, float]] = []
        asked = plain(queries, "ddim")
        rows = [(i, *pair) for group in alike(asked) for i in group for pair in product(self.etas, self.variances)]
        about = {
            "attack": registry.to_json(self), "concept": concept.to_json(), "seed": seed, **target.describe(),
            "queries": [query.key for query in asked],
        }  # fmt: skip
        for first in progress(range(0, len(rows), self.batch), "images with extra noise"):
            part = rows[first : first + self.batch]
            for numbers in alike([asked[i] for i, _, _ in part]):
                chosen = [part[n] for n in numbers]

                def make(chosen: list[tuple[int, float, float]] = chosen) -> dict[str, Tensor]:
                    rngs = [generator(seed, "noise", *(str(value) for value in row)) for row in chosen]
                    etas, variances = ([row[k] for row in chosen] for k in (1, 2))
                    return {"latents": noisy(model, [asked[row[0]] for row in chosen], etas, variances, rngs)}

                made = stored.once(f"noise-{first}-{numbers[0]}", about, make) if stored else make()
                for row, x in zip(chosen, made["latents"], strict=True):
                    tries.append(replace(asked[row[0]], latents=x[None].clone(), start=asked[row[0]].steps - 1))
                    given.append(row[0])
                    pairs.append(row[1:])
        best, values, order = ranked(tries, seen(target, concept, tries, self.batch))
        cost = Cost(calls=sum(query.start for query in tries) * denoise_calls(model))
        cost.generated(model, tries)
        told = {"etas": [pairs[i][0] for i in order], "variances": [pairs[i][1] for i in order]}
        return Finding(best, values, given=tuple(given[i] for i in order), cost=vars(cost), about=told)


__all__ = ["ExtraNoise"]
