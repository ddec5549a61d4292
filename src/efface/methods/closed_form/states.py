"""An edit in progress: one map of text vectors for all matrices, or, for the tensor technique, the matrices themselves.

A state starts at the untouched model; each `erase` solves one least squares around the matrices as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from efface.edits.edit import Edit
from efface.edits.parts import TextMap
from efface.methods.closed_form.least_squares import Fit, Regularizer, cholesky, condition, derive, solve, undo
from efface.methods.closed_form.matrices import Factors, Outputs, Preserved, check_finite, gram, weight_gram
from efface.methods.closed_form.prompts import Pair, Rows
from efface.models.model import Model

SINGLE = 3e-8  # half a unit in the last place of float32: smaller singular values would be lost anyway

Technique = Literal["replace", "tensor"]


class Joined(NamedTuple):
    """Hold the rows and goals of several pairs; which: the goal of each row, None when row i goes to goal i."""

    rows: Float[Tensor, "n dim"]
    goals: Float[Tensor, "m dim"]
    which: Int64[Tensor, " n"] | None


def joined(pairs: Sequence[Pair]) -> Joined:
    """Concatenate pairs; goals that are the same rows of one encoded prompt are stored once."""
    starts: dict[tuple[Any, ...], int] = {}
    goals, which, count = [], [], 0
    for _, new in pairs:
        key = (new.data_ptr(), new.shape, new.stride(), new.dtype)
        if key not in starts:
            starts[key] = count
            goals.append(new)
            count += len(new)
        which.append(torch.arange(starts[key], starts[key] + len(new)))
    rows = torch.cat([old for old, _ in pairs])
    return Joined(rows, torch.cat(goals), torch.cat(which) if count < len(rows) else None)


class State(ABC):
    """Base class of edits in progress."""

    @abstractmethod
    def erase(
        self, pairs: Sequence[Pair], ridge: float, scale: float, preserved: Preserved, current: bool = False
    ) -> dict[str, float]:
        """Bring the rows of each pair to its goals, and return the quality of the solution.

        current: goals and preserved vectors are read by the matrices as they are, instead of the original ones.
        """

    @abstractmethod
    def outputs(self) -> Outputs:
        """Return Σ WᵀW and Σ WᵀW₀ of the matrices as they are."""

    @abstractmethod
    def undone(self, rows: Rows) -> Float64[Tensor, "n dim"]:
        """Return the c' for which the matrices give exactly what the original ones give for c: RECE eq. 5."""

    @abstractmethod
    def edit(self, report: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None) -> Edit:
        """Return the edit so far, with the report in its provenance."""

    def derived(
        self, rows: Rows, ridge: float, regularizer: Regularizer = "zero", targets: Rows | None = None
    ) -> Float64[Tensor, "n dim"]:
        """Return the rows that bring back what was erased; ridge 0: exactly."""
        return derive(rows, self.outputs(), ridge, regularizer, targets) if ridge > 0 else self.undone(rows)


class Mapped(State):
    """Hold W = W₀T as T. system: makes G = Σ W₀ᵀW₀, called only when outputs are asked for."""

    def __init__(self, names: tuple[str, ...], width: int, system: Callable[[], Tensor]):
        self.names, self.system = names, system
        self.change = Factors.identity(width)
        self._outputs: Outputs | None = None
        self._steps: list[Factors] = []  # of T since the outputs were last computed

    def erase(
        self, pairs: Sequence[Pair], ridge: float, scale: float, preserved: Preserved, current: bool = False
    ) -> dict[str, float]:
        rows, goals, which = joined(pairs)
        if current or not self.change.left.shape[1]:  # W_t+1 = W_t S: the same least squares around the identity
            fit = solve(rows, goals, ridge, scale, preserved, which=which)
            step = self.change.pushed(fit.step)
        else:
            fit = solve(rows, goals, ridge, scale, preserved, self.change, restore=True, which=which)
            step = fit.step
        self.change = self.change.plus(step)
        self._steps.append(step)
        return summary(fit)

    def outputs(self) -> Outputs:
        system = self.system()
        found = self._outputs or Outputs.of(system)
        for step in self._steps:
            found = found.plus(step, system)
        self._outputs, self._steps = found, []
        return found

    def undone(self, rows: Rows) -> Float64[Tensor, "n dim"]:
        return undo(rows, self.change)

    def edit(self, report: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None) -> Edit:
        return text_edit(self.names, self.change, report, extra)


class Dense(State):
    """Hold every matrix by itself, for the tensor technique, whose goals differ from matrix to matrix.

    The goals of a pair are W₀ g less their component along the matrix's own values W c, normalised over all rows of the
    pair (UCE's and RECE's code; in neither paper).
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self.base = {name: weight.detach().cpu() for name, weight in weights.items()}
        self.now = {name: weight.double() for name, weight in self.base.items()}

    def erase(
        self, pairs: Sequence[Pair], ridge: float, scale: float, preserved: Preserved, current: bool = False
    ) -> dict[str, float]:
        for old, new in pairs:
            check_finite("text vectors", old)
            check_finite("targets", new)
        rows, kept = torch.cat([old for old, _ in pairs]).double(), preserved.matrix()
        normal = scale * gram(rows) + kept
        chol = cholesky(normal, ridge)
        gains = scale * torch.cholesky_solve(rows.T, chol).T  # w c M⁻¹
        back = torch.cholesky_solve(kept, chol).T  # P M⁻¹
        before, after = 0.0, 0.0
        for name, weight in self.now.items():
            original = self.base[name].double()
            anchor = weight if current else original
            missed = torch.cat([_without(old, new, weight, anchor) - old.double() @ weight.T for old, new in pairs])
            change = missed.T @ gains + (anchor - weight) @ back
            before, after = (
                before + float(missed.square().sum()),
                after + float((missed - rows @ change.T).square().sum()),
            )
            self.now[name] = weight + change
        residual = (after / before) ** 0.5 if before > 0 else 0.0
        return {"residual": _short(residual), "condition": _short(condition(normal, chol, ridge))}

    def outputs(self) -> Outputs:
        mixed = sum(weight.T @ self.base[name].double() for name, weight in self.now.items())
        assert isinstance(mixed, Tensor)
        return Outputs(weight_gram(self.now.values()), mixed)

    def undone(self, rows: Rows) -> Float64[Tensor, "n dim"]:
        normal, mixed = self.outputs()
        return torch.cholesky_solve(mixed @ rows.double().T, cholesky(normal, 0.0)).T.contiguous()

    def edit(self, report: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None) -> Edit:
        delta = {name: (weight - self.base[name].double()).float() for name, weight in self.now.items()}
        return Edit(delta=delta, meta={"closed_form": dict(report)}, extra=dict(extra or {}))


def state(model: Model, names: tuple[str, ...], technique: Technique, system: Callable[[], Tensor]) -> State:
    """Return the edit in progress of the named weights, at its start."""
    if technique == "replace":
        return Mapped(names, model.width, system)
    weights = model.weights()
    return Dense({name: weights[name] for name in names})


def _without(old: Rows, new: Rows, weight: Tensor, anchor: Tensor) -> Float64[Tensor, "n out"]:
    """Return the anchor's outputs for `new` less their projection on u = W old / ‖W old‖_F."""
    along, wanted = old.double() @ weight.T, new.double() @ anchor.T
    size = along.square().sum()
    return wanted - (along * wanted).sum() / size * along if size > 0 else wanted


def text_edit(
    names: tuple[str, ...], change: Factors, report: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None
) -> Edit:
    """Return the edit W = W₀·T of the named weights, with T in float32 factors and the report in its provenance."""
    small = change.compressed(SINGLE)
    text_map = TextMap(names, small.left.float().contiguous(), small.right.float().contiguous())
    meta = {"closed_form": {**report, "rank": small.left.shape[1]}}
    return Edit(maps=(text_map,), meta=meta, extra=dict(extra or {}))


def summary(fit: Fit) -> dict[str, float]:
    """Return the quality of a solution, rounded for the provenance."""
    return {key: _short(getattr(fit, key)) for key in ("residual", "drift", "condition")}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
