"""Metrics of sets of images: vectors are collected batch by batch, then compared group by group."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from efface.evaluation.record import Maker, Row, SetScore
from efface.evaluation.summary import DIGITS
from efface.judge import Judge
from efface.metric import SetMetric


class Collected:
    """Collect the vectors of the images of both models, for every metric of sets, in the order of a record's rows."""

    def __init__(self, metrics: Sequence[SetMetric], judge: Judge | None):
        self.metrics, self.judge = tuple(metrics), judge
        self._vectors: dict[tuple[str, Maker], list[Tensor]] = {}

    @torch.no_grad()
    def add(self, maker: Maker, images: Float[Tensor, "n 3 h w"]) -> None:
        """Take the vectors of a batch of images."""
        for metric in self.metrics:
            self._vectors.setdefault((metric.label, maker), []).append(metric.vectors(images, self.judge))

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> dict[str, dict[str, SetScore]]:
        """Return the score of every group of two images or more, by metric and group.

        rows: of the images in the order in which each model's were added.
        """
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(row for row in rows if row.made_by == "edited"):
            for group in row.groups:
                groups.setdefault(group, []).append(i)
        found: dict[str, dict[str, SetScore]] = {}
        for metric in self.metrics if rows else ():
            made, original = (torch.cat(self._vectors[metric.label, maker]) for maker in ("edited", "original"))
            for group, at in groups.items():
                if len(at) > 1:
                    value = float(metric.distance(made[at], metric.others(original[at], self.judge)))
                    found.setdefault(metric.label, {})[group] = SetScore(value=round(value, DIGITS), n=len(at))
        return found


__all__ = ["Collected"]
