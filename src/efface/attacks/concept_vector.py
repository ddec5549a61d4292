"""Concept vector: add the concept's direction in text space to a prompt's encoding, a continuous attack.

RECE's code does this and calls it Ring-A-Bell (Gong et al., ECCV 2024, https://arxiv.org/abs/2407.12383;
https://github.com/CharlesGong12/RECE); Ring-A-Bell itself finds a prompt of tokens, see `ring_a_bell`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.directions import direction, pairs
from efface.concept import Concept
from efface.context import Context
from efface.errors import BadInput
from efface.query import Query
from efface.util.ranges import Ranges


@dataclass(frozen=True)
class ConceptVector(Attack):
    """Add eta times the concept's direction to every encoded prompt, for every eta.

    Args:
        eta: strengths
        prompts_with: prompts with the concept; by default templates with its name
        prompts_without: the same prompts without it, in the same order
    """

    eta: tuple[float, ...] = (3.0,)
    prompts_with: tuple[str, ...] = ()
    prompts_without: tuple[str, ...] = ()

    NEEDS: ClassVar[tuple[Need, ...]] = ("text encoder",)
    RANGES: ClassVar[Ranges] = {"eta": "[-1000, 1000]"}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "rece": {},  # η = 3
        "rece-low": {"eta": (0.9,)},
        "mini": {"eta": (0.5, 1.0, 2.0, 3.0)},
    }
    QUICK: ClassVar[dict[str, Any]] = {"eta": (1.0,)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eta:
            raise BadInput("eta needs at least one strength")
        pairs(Concept("any"), self.prompts_with, self.prompts_without)

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check too that the judge, if there is one, knows the concept."""
        super().check(target, concept, queries)
        if target.judge is not None:
            target.success.check(concept)

    @torch.no_grad()
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return every query with every eta; the judge, if there is one, ranks them, else they keep their order.

        `tensors` holds the "direction", and for SDXL that of the "pooled" vectors.
        """
        chosen = pairs(concept, self.prompts_with, self.prompts_without)
        model, vector = target.edited, direction(target.edited, chosen)
        known = model.encode([query.prompt for query in queries]).float()
        asked = [
            replace(query, context=moved(known[i : i + 1], vector, eta), latents=None, start=0)
            for eta in self.eta
            for i, query in enumerate(queries)
        ]
        texts = 2 * len(chosen.shown) + len(queries)
        tensors = {"direction": vector.tokens} | ({} if vector.pooled is None else {"pooled": vector.pooled})
        cost, scores = Cost(), (0.0,) * len(asked)
        etas: Sequence[float] = [eta for eta in self.eta for _ in queries]
        if target.judge is not None:
            scores = tuple(target.seen(model.generate(asked), concept).tolist())
            cost.generated(model, asked)
        cost.texts = texts
        order = sorted(range(len(asked)), key=lambda i: -scores[i])
        about = {"eta": [etas[i] for i in order], "pairs": [list(chosen.shown), list(chosen.absent)]}
        best = tuple(asked[i] for i in order)
        given = tuple(i % len(queries) for i in order)
        values = tuple(scores[i] for i in order)
        return Finding(best, values, cost=vars(cost), about=about, tensors=tensors, given=given)


def moved(c: Context, vector: Context, eta: float) -> Context:
    """Return an encoded prompt with eta times the direction added, to tokens and pooled vectors alike."""
    tokens = c.tokens + eta * vector.tokens
    if c.pooled is None or vector.pooled is None:
        return c.with_tokens(tokens)
    return replace(c, tokens=tokens, pooled=c.pooled + eta * vector.pooled)
