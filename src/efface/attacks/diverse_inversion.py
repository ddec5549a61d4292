"""Diverse Inversion: many unlike embeddings that all generate the concept (Pham et al., 2024).

Pham, Marshall, Hegde and Cohen, Robust Concept Erasure Using Task Vectors, https://arxiv.org/abs/2404.03631, eq. 4
and section 5.1. Their Erasure Score, and the strength of an edit chosen by it, are taken over these embeddings
(`efface.evaluation.erasure_score`). Their code has no Diverse Inversion.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Finding, Target
from efface.attacks.search.bands import Bands, least_pairs
from efface.attacks.search.inverting import Inverting, Words, invert
from efface.attacks.search.phrases import queries_with
from efface.concept import Concept
from efface.errors import BadInput
from efface.models.model import Model
from efface.models.token_vectors import ids_of, table
from efface.query import Query
from efface.training.loop import generator
from efface.util.ranges import ROWS, WEIGHT, Ranges


@dataclass(frozen=True)
class DiverseInversion(Inverting):
    """Learn embeddings in equal bands of cosine to the concept's name, unlike each other, all in one batch.

    Args:
        bands: bands of cosine to the name, of equal width from `low` to `high`
        each: embeddings in each band
        low: least cosine to the name's token vector (a of eq. 4)
        high: largest cosine to it (b of eq. 4)
        pair_low: least cosine of two embeddings (c of eq. 4)
        pair_high: largest cosine of two embeddings (d of eq. 4)
        pairs: two embeddings of one band, as in the paper's section 5.1, or any two (all)
        constraint: projection satisfies every bound to 1e-3 after each step; penalty adds squared violations to the
            loss; none is textual inversion from random restarts, which the paper finds an adequate substitute
        penalty: weight of the squared violations against the loss of one embedding
        through: original learns them on the un-erased model, before an edit is chosen, as the paper does; edited
            attacks the edited model itself
    """

    bands: int = 5  # "evenly across 5 non-overlapping intervals"
    each: int = 20  # "100 word embeddings"
    low: float = 0.0
    high: float = 0.75
    pair_low: float = -1.0
    pair_high: float = 0.5
    pairs: Literal["band", "all"] = "band"
    constraint: Literal["projection", "penalty", "none"] = "projection"
    penalty: float = 100.0
    through: Literal["original", "edited"] = "original"

    RANGES: ClassVar[Ranges] = {
        "bands": "[1, 100]", "each": "[1, 1000]", "bands * each": ROWS, "low": "[-1, 1]", "high": "[-1, 1]",
        "pair_low": "[-1, 1]", "pair_high": "[-1, 1]", "penalty": WEIGHT,
    }  # fmt: skip
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "restarts": {"constraint": "none"},
        "mini": {"each": 1, "steps": 60, "lr": 2e-2, "batch": 4, "images": 16, "window": 4, "momentum": "held"},
    }
    QUICK: ClassVar[dict[str, Any]] = {"bands": 2, "each": 2, "steps": 2, "batch": 1, "images": 2, "window": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        for low, high, names in [(self.low, self.high, "low, high"), (self.pair_low, self.pair_high, "pair_low, …")]:
            if not low < high:
                raise BadInput(
                    f"a range of cosines needs its lower end below its upper one, got {low}, {high} ({names})"
                )
        if self.constraint != "none":
            for low, high in self.edges:
                self._check_reachable(self.each, min(abs(low), abs(high)) if low * high > 0 else 0.0)
            if self.pairs == "all" and self.low > 0:
                mean = sum(low for low, _ in self.edges) / self.bands
                self._check_reachable(self.each * self.bands, mean)

    def _check_reachable(self, count: int, nearest: float) -> None:
        least = least_pairs(count, nearest)
        if least > self.pair_high:
            raise BadInput(
                f"{count} embeddings at a cosine of {nearest:g} or more to the name have two with a cosine of "
                f"{least:.3g} or more: pair_high {self.pair_high:g} cannot be reached"
            )

    @property
    def edges(self) -> tuple[tuple[float, float], ...]:
        """Return (a, b) of each band."""
        width = (self.high - self.low) / self.bands
        return tuple((self.low + i * width, self.low + (i + 1) * width) for i in range(self.bands))

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the queries with each embedding in the name's place, the lowest loss first.

        Scores are the embeddings' mean losses of the last tenth, negated. `about` has, in the same order, each one's
        "band" and its cosine "to_name" (figure 9), and the range of the "pairs". `tensors` holds the "vectors" and
        all "cosines" of pairs. Raises `BadInput` when no such embeddings are found, before any image is generated.
        """
        learned = target if self.through == "edited" else replace(target, edited=target.source)
        bands = self.bounds(learned.edited, concept)
        words = Words(self.starts(learned.edited, bands, seed))
        constrain: Callable[[Tensor], Tensor] | None = bands.project if self.constraint == "projection" else None
        penalty = (lambda v: self.penalty * bands.penalty(v)) if self.constraint == "penalty" else None
        found = invert(self, learned, concept, queries, words, seed, constrain, penalty)
        order = found.losses.argsort(stable=True)
        vectors: Tensor = found.vectors[order]
        asked = queries_with(target.edited, concept, vectors, queries, self.phrases(concept, queries))
        scores = tuple(-float(loss) for loss in found.losses[order] for _ in queries)
        to, pairs = bands.cosines(vectors)
        about = {
            "loss": found.history, "to_name": [round(float(one), 4) for one in to],
            "band": (order // self.each).tolist(), "bands": [list(edge) for edge in self.edges],
            "pairs": self._summary(pairs, order), "off": round(bands.worst(found.vectors), 6),
        }  # fmt: skip
        tensors = {"vectors": vectors, "order": order, "cosines": pairs}
        given = tuple(range(len(queries))) * len(vectors)
        return Finding(asked, scores, given=given, cost=found.cost, about=about, tensors=tensors)

    def bounds(self, model: Model, concept: Concept) -> Bands:
        """Return the bounds of all embeddings, band after band.

        The name's vector is the mean of its tokens' for one vector, else its tokens' in turn.
        """
        own = table(model)[ids_of(model, concept.name)]
        if self.vectors == 1:
            reference = own.mean(0, keepdim=True)
        else:
            reference = own[[i % len(own) for i in range(self.vectors)]]
        low, high = (torch.tensor(ends).repeat_interleave(self.each) for ends in zip(*self.edges, strict=True))
        n = self.bands * self.each
        band = torch.arange(n) // self.each
        together = (band[:, None] == band) if self.pairs == "band" else torch.ones(n, n, dtype=torch.bool)
        together = together & ~torch.eye(n, dtype=torch.bool)
        device = own.device
        return Bands(
            reference[None], low.to(device), high.to(device), self.pair_low, self.pair_high, together.to(device)
        )

    def starts(self, model: Model, bands: Bands, seed: int) -> Float[Tensor, "n k dim"]:
        """Return the first vectors: random in their bands, with the name's norm; without a constraint, anywhere.

        Raises `BadInput` when no such vectors are found.
        """
        n, known = self.bands * self.each, table(model)
        shape = bands.reference.shape[1:]
        rngs = [generator(seed, "start", row) for row in range(n)]
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(known)
        if self.constraint == "none":
            return known.mean(0) + known.std(0) * noise
        share = torch.stack([torch.rand(1, generator=rng) for rng in rngs]).view(-1, 1, 1).to(known)
        axis = bands.reference / bands.reference.norm()
        noise = noise - (noise * axis).sum((1, 2), keepdim=True) * axis
        s = bands.low[:, None, None].lerp(bands.high[:, None, None], share)
        w = noise / noise.flatten(1).norm(dim=1)[:, None, None]
        return bands.project((s * axis + (1 - s.square()).clamp(min=0).sqrt() * w) * bands.reference.norm())

    def _summary(self, cosines: Float[Tensor, "n n"], order: Tensor) -> dict[str, dict[str, float]]:
        """Return the least, mean and largest cosine of two embeddings of one band, and of any two; {} without pairs."""
        cosines, band = cosines.cpu(), order.cpu() // self.each
        upper = torch.ones_like(cosines, dtype=torch.bool).triu(1)
        found = {"band": cosines[upper & (band[:, None] == band)], "all": cosines[upper]}
        return {
            name: {"least": round(float(own.min()), 4), "mean": round(float(own.mean()), 4)}
            | {"largest": round(float(own.max()), 4)}
            for name, own in found.items()
            if len(own)
        }


__all__ = ["DiverseInversion"]
