"""Derived embedding: the text vectors that an edited model reads as the original reads the concept's (Gong et al.).

Reliable and Efficient Concept Erasure, ECCV 2024, https://arxiv.org/abs/2407.12383, eq. 5 and 8, where the method RECE
derives them to erase them in turn. As an attack they undo any edit of the text's key and value matrices that leaves an
inverse, without a gradient or an image.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost
from efface.concept import Concept
from efface.context import Context
from efface.edits.guard import MapGuard, same
from efface.errors import BadInput
from efface.methods.closed_form.least_squares import derive
from efface.methods.closed_form.matrices import Outputs
from efface.models.model import Model
from efface.query import Query
from efface.util.ranges import WEIGHT_OR_NONE, Ranges

SINGULAR = 1e-6  # singular values of T below this share of the largest are rounding: the weights are float32
ONE_MAP = 1e-3  # share of the change that a single map may leave unexplained
RIDGES = {"style": 1e-3}  # "λ in Eq. (7) to 1e-1 … For artistic style … λ to 1e-3"
RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Matrices:
    """Hold the edited and the original matrices of the text, stacked, in float64; the guards' map is in the first.

    Only their products with each other matter, so tall stacks are turned to as few rows as they have columns.
    """

    new: Float64[Tensor, "out dim"]
    old: Float64[Tensor, "out dim"]

    @classmethod
    def of(cls, target: Target) -> "Matrices":
        """Read both models' matrices."""
        new, old = (
            torch.cat([weight.double().cpu() for weight in _weights(model)]) for model in (target.edited, target.source)
        )
        for guard in reversed(target.edited.guards):  # the first guard acts first on the text: W T₂ T₁ e
            if isinstance(guard, MapGuard):
                new = new + (new @ guard.left.double().cpu()) @ guard.right.double().cpu()
        width = new.shape[1]
        if len(new) > 2 * width:
            new, old = torch.linalg.qr(torch.cat([new, old], 1), mode="r")[1].split(width, 1)
        return cls(new, old)

    @cached_property
    def map(self) -> Float64[Tensor, "dim dim"] | None:
        """Return the T with W = W₀T for every matrix, if there is one and only one."""
        if float(torch.linalg.cond(self.old)) > 1 / SINGULAR:
            return None
        found = torch.linalg.lstsq(self.old, self.new).solution
        left = float((self.old @ found - self.new).norm())
        return found if left <= ONE_MAP * float((self.new - self.old).norm()) else None

    @cached_property
    def inverse(self) -> dict[str, Any]:
        """Return whether T has an inverse, its rank, and its condition number; {} without a T."""
        if self.map is None:
            return {}
        values: list[float] = torch.linalg.svdvals(self.map).tolist()
        rank = sum(value > SINGULAR * values[0] for value in values)
        found: dict[str, Any] = {"inverse": rank == len(values), "rank": rank}
        return found | ({"condition": float(f"{values[0] / values[-1]:.4g}")} if found["inverse"] else {})

    def solve(self, rows: Float64[Tensor, "n dim"], ridge: float) -> Float64[Tensor, "n dim"]:
        """Return eq. 8's context; for λ = 0 eq. 5's: T⁻¹c where there is one, else the shortest of the best."""
        if ridge > 0:
            return derive(rows, Outputs(self.new.T @ self.new, self.new.T @ self.old), ridge)
        if self.map is not None and self.inverse["inverse"]:
            return torch.linalg.solve(self.map, rows.T).T.contiguous()
        return self.best(rows)

    def best(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Return the shortest context that misses least, with singular values that are rounding left out."""
        return (self._pseudo @ (self.old @ rows.T)).T.contiguous()

    def missed(self, derived: Float64[Tensor, "n dim"], rows: Float64[Tensor, "n dim"]) -> float:
        """Return ‖W c' − W₀ c‖ as a share of ‖W₀ c‖, over all matrices and rows."""
        wanted = rows @ self.old.T
        return float((derived @ self.new.T - wanted).norm() / wanted.norm())

    @cached_property
    def _pseudo(self) -> Float64[Tensor, "dim out"]:
        return torch.linalg.pinv(self.new, rtol=SINGULAR)


@dataclass(frozen=True)
class Derived(Attack):
    """Solve for the context whose keys and values under the edit are those of the concept's prompt before it.

    Args:
        ridge: λ of eq. 8; 0 is eq. 5, by default 0.1, and 0.001 for a style, as in the paper
        rows: token positions that are replaced: all, as in the code, from the prompt's last word to the end (tail), or
            that of the last word only (last)
    """

    ridge: float | None = None
    rows: Literal["all", "tail", "last"] = "all"

    NEEDS: ClassVar[tuple[Need, ...]] = ("original",)
    RANGES: ClassVar[Ranges] = {"ridge": WEIGHT_OR_NONE}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "exact": {"ridge": 0.0}, "mini": {"ridge": 0.0}}

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that both models read text by matrices of the same shapes, and that these, or a map of them, differ.

        Raises `BadInput`.
        """
        super().check(target, concept, queries)
        edited, original = target.edited, target.source
        names = [model.text_weights() for model in (edited, original)]
        name = edited.name or "this model"
        if not names[0]:
            raise BadInput(f"{name} has no weights whose only input is the text: there is nothing to derive from")
        new, old = (_weights(model) for model in (edited, original))
        if names[0] != names[1] or [w.shape for w in new] != [w.shape for w in old]:
            raise BadInput(f"the original model is of another architecture than {name}")
        guards = [guard for guard in edited.guards if not isinstance(guard, MapGuard)]
        if any(replace(edited, guards=(guard,)).hooks().embed is not same for guard in guards):
            raise BadInput("a guard changes the text, and is no linear map: there is nothing to invert; try inversion")
        maps = len(edited.guards) > len(guards)
        if not maps and all(torch.equal(a, b) for a, b in zip(new, old, strict=True)):
            raise BadInput(
                f"the edit of {name} changes neither the keys and values of the text nor, by a map, their input: "
                "there is nothing to derive; try inversion"
            )

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return each query with the context derived for its own prompt (the concept's first where it has none).

        Scores are the shares of the original keys and values that are missed, negated. `about` says whether the edit is
        one map T, and then whether T has an inverse, T's condition number and what share of the prompt's keys and
        values no context at all could give (`least`); and the norms of the rows before and after (`norm`), the cost of
        the exact form. Images equal the original's where unconditional prediction does not matter (guidance 1).
        """
        both = Matrices.of(target)
        ridge = RIDGES.get(concept.kind, RIDGE) if self.ridge is None else self.ridge
        texts = [query.prompt.strip() or concept.texts[0] for query in queries]
        with torch.no_grad():
            encoded = target.source.encode(texts).float()
        asked, scores, norms, least = [], [], [], []
        for i, (query, text) in enumerate(zip(queries, texts, strict=True)):
            places = self._places(target.source, text)
            rows = encoded.tokens[i, places].double().cpu()
            derived = both.solve(rows, ridge)
            tokens = encoded.tokens[i : i + 1].clone()
            tokens[0, places] = derived.to(tokens)
            pooled = None if encoded.pooled is None else encoded.pooled[i : i + 1].clone()
            asked.append(replace(query, prompt=text, context=Context(tokens, pooled)))
            scores.append(-both.missed(derived, rows))
            norms.append([round(float(side.norm(dim=1).mean()), 4) for side in (rows, derived)])
            least.append(both.missed(both.best(rows), rows))
        order = sorted(range(len(asked)), key=lambda i: -scores[i])
        about: dict[str, Any] = {
            "ridge": ridge, "one_map": both.map is not None, **both.inverse, "norm": [norms[i] for i in order],
            "least": [float(f"{least[i]:.3g}") for i in order],
        }  # fmt: skip
        best = tuple(asked[i] for i in order)
        cost = Cost(texts=len(texts))
        return Finding(best, tuple(scores[i] for i in order), given=tuple(order), cost=vars(cost), about=about)

    def _places(self, model: Model, text: str) -> list[int]:
        """Return the positions in the context that are replaced, in each stream of tokens."""
        found: list[int] = []
        for own in model.family.streams(text):
            end = own.start + len(own.ids)
            first = own.start if self.rows == "all" else own.start + own.subject
            found += range(first, first + 1 if self.rows == "last" else end)
        return found


def _weights(model: Model) -> list[Tensor]:
    weights = model.weights()
    return [weights[name].detach() for name in model.text_weights()]


__all__ = ["Derived"]
