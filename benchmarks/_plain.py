"""What efface's closed-form algebra is measured against: plain float64 solves, and the way published code does it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from _sd14 import HEIGHTS, LENGTH, WIDTH, matrices, problem, texts


def timed(work: Callable[[], Any], times: int = 3) -> tuple[float, float, Any]:
    """Return (best wall seconds, its CPU seconds, last result)."""
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return *min(found), result


def plain_map(c: Any, g: Any, k: Any, ridge: float, scale: float) -> Any:
    """Return T by the formula, in float64, with an inverse."""
    import torch

    eye = torch.eye(WIDTH, dtype=torch.float64)
    top, bottom = ridge * eye, ridge * eye
    for start in range(0, len(c), 4096):
        x, y = c[start : start + 4096].double(), g[start : start + 4096].double()
        top, bottom = top + y.T @ x, bottom + x.T @ x
    for start in range(0, len(k), 4096):
        x = k[start : start + 4096].double()
        top, bottom = top + scale * x.T @ x, bottom + scale * x.T @ x
    return torch.linalg.solve(bottom, top.T).T


def plain_rece(c: Any, empty: Any, base: list[Any], epochs: int) -> Any:
    """Return RECE's T by dense float64 algebra."""
    import torch

    system = sum(w.double().T @ w.double() for w in base)
    change = plain_map(c[2:], empty[: LENGTH - 2], empty, 0.5, 1.0)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    for _ in range(epochs):
        back = change.T @ system
        derived = torch.linalg.solve(0.1 * eye + back @ change, back @ c.double().T).T
        change = change @ plain_map(derived, empty, empty, 0.1, 0.1)
    return change


def edit_layer(weights: list[Any], index: int, pairs: list[tuple[Any, Any, float]], ridge: float) -> Any:
    """Edit one matrix in float32: all layers' values for each text, batched outer products, one inverse."""
    weight = weights[index]
    top, bottom = ridge * weight, ridge * torch.eye(WIDTH)
    for old, new, scale in pairs:
        values = [new @ layer.T for layer in weights]
        top = top + scale * (values[index][:, :, None] @ old[:, None, :]).sum(0)
        bottom = bottom + scale * (old[:, :, None] @ old[:, None, :]).sum(0)
    return top @ torch.inverse(bottom)


def baseline_solve(case: dict[str, Any], ridge: float, scale: float) -> dict[str, Any]:
    """Time the baseline: in full for one concept, else from two texts in one layer of each height."""
    small = {**case, "erase": min(2, case["erase"]), "keep": min(2, case.get("keep", 0))}
    c, g, k = problem(small)
    edits = [(x, y, 1.0) for x, y in zip(c.chunk(small["erase"]), g.chunk(small["erase"]), strict=True)]
    keeps = [(x, x, scale) for x in k.chunk(small["keep"])] if small["keep"] else []
    weights = matrices()
    if case["erase"] == 1:
        seconds = timed(lambda: [edit_layer(weights, i, edits + keeps, ridge) for i in range(len(HEIGHTS))], 1)[0]
        return {"baseline_seconds": seconds, "baseline": "measured in full"}
    inverse = timed(lambda: torch.inverse(torch.eye(WIDTH) + weights[0].T @ weights[0]))[0]
    total = 0.0
    for index in (0, 10, 20):
        one = timed(lambda i=index: edit_layer(weights, i, edits, ridge), 1)[0]
        held = timed(lambda i=index: edit_layer(weights, i, keeps, ridge), 1)[0] if keeps else inverse
        per_layer = (one - inverse) / small["erase"] * case["erase"] + inverse
        per_layer += (held - inverse) / max(1, small["keep"]) * case.get("keep", 0)
        total += per_layer * HEIGHTS.count(HEIGHTS[index])
    how = "extrapolated from two texts of each kind in one layer of each height"
    return {"baseline_seconds": total, "baseline": how}


def baseline_rece(epochs: int, base: list[Any]) -> dict[str, Any]:
    """Time the baseline's UCE edit and one epoch in full; epochs cost the same."""
    c, empty = texts(1, 2)[0], texts(1, 99)[0]
    layers = range(len(HEIGHTS))

    def first() -> list[Any]:
        pairs = [(c[2:], empty[: LENGTH - 2], 1.0), (empty, empty, 1.0)]
        return [edit_layer(base, i, pairs, 0.5) for i in layers]

    stage, _, now = timed(first, 1)

    def epoch() -> list[Any]:
        normal, mixed = 0.1 * torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH)
        for new, old in zip(now, base, strict=True):
            normal, mixed = normal + new.T @ new, mixed + new.T @ old
        derived = c @ (torch.inverse(normal) @ mixed).T
        return [edit_layer(now, i, [(derived, empty, 1.0), (empty, empty, 0.1)], 0.1) for i in layers]

    each = timed(epoch, 1)[0]
    how = "its UCE edit and one epoch measured in full, times the epochs"
    return {"baseline_seconds": stage + epochs * each, "baseline": how}
