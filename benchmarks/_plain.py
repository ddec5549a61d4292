"""What efface's closed-form methods are measured against: each method computed as its published code does it.

The same texts are encoded as often and the same products are formed as often, in float32, and nothing is slower than
there: UCE of 2023 and RECE encode every text and compute every matrix's values anew for each matrix, UCE of 2025 and
TIME do so once per text. The code is efface's own; `benchmarks/closed_form.md` names the files it follows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = list[Tensor]
Pair = tuple[Tensor, Tensor]  # source rows, target rows


def encoded(pipe: Any, *prompts: str) -> list[Tensor]:
    """Return the text vectors (77, 768) of prompts that are encoded together."""
    length = pipe.tokenizer.model_max_length
    batch = pipe.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return list(pipe.text_encoder(batch.input_ids)[0])


def last(pipe: Any, prompt: str) -> int:
    """Return the position of a prompt's last word, 0 where it has none."""
    return len(pipe.tokenizer(prompt).input_ids) - 2


def new_matrix(weight: Tensor, terms: Sequence[tuple[Tensor, Tensor, float]], ridge: float) -> Tensor:
    """Return the edited matrix: sums of materialised outer products, one of them per row, and an inverse.

    terms: source rows, the values wanted for them by this matrix, the weight.
    """
    top, bottom = ridge * weight, ridge * torch.eye(weight.shape[1], dtype=weight.dtype)
    for rows, values, scale in terms:
        top += scale * (values[:, :, None] @ rows[:, None, :]).sum(0)
        bottom += scale * (rows[:, :, None] @ rows[:, None, :]).sum(0)
    return top @ torch.inverse(bottom)


def all_values(weights: Weights, rows: Tensor) -> Weights:
    """Return the values of some rows by every matrix."""
    return [rows @ weight.T for weight in weights]


def uce_2023(
    pipe: Any, weights: Weights, erase: Sequence[str], keep: Sequence[str], which: Sequence[int], ridge: float = 0.5
) -> Weights:
    """Edit some of the matrices as UCE's code of 2023 does; keep: the empty text included."""
    scale = max(0.1, 1 / max(1, len(keep)))
    found = []
    for index in which:
        terms = []
        for text in erase:
            old, new = encoded(pipe, text, " ")
            a, b = last(pipe, text), last(pipe, " ")
            old, new = old[a : len(old) - max(0, b - a)], new[b : len(new) - max(0, a - b)]
            terms.append((old.to(weights[0]), all_values(weights, new.to(weights[0]))[index], 1.0))
        for text in keep:
            old, new = encoded(pipe, text, text)
            terms.append((old.to(weights[0]), all_values(weights, new.to(weights[0]))[index], scale))
        found.append(new_matrix(weights[index], terms, ridge))
    return found


def uce_2025(
    pipe: Any, weights: Weights, erase: Sequence[str], keep: Sequence[str], which: Sequence[int], ridge: float = 0.5
) -> Weights:
    """Edit some of the matrices as UCE's code of 2025 does: a text's values are computed once, for every matrix."""
    sources = {text: _word(pipe, text).to(weights[0]) for text in dict.fromkeys([*erase, *keep])}
    values = {text: all_values(weights, _word(pipe, text).to(weights[0])) for text in dict.fromkeys(["", *keep])}
    found = []
    for index in which:
        weight = weights[index]
        top, bottom = ridge * weight, ridge * torch.eye(weight.shape[1], dtype=weight.dtype)
        for text, target in [*((text, "") for text in erase), *zip(keep, keep, strict=True)]:
            column, value = sources[text].T, values[target][index].T
            top += value @ column.T
            bottom += column @ column.T
        found.append(top @ torch.inverse(bottom))
    return found


def _word(pipe: Any, text: str) -> Tensor:
    return encoded(pipe, text)[0][last(pipe, text)][None]


def time(
    pipe: Any, weights: Weights, pairs: Sequence[tuple[str, str]], which: Sequence[int], ridge: float = 0.1
) -> Weights:
    """Edit some of the matrices as TIME's code does: values are computed once, outer products for each matrix.

    pairs: the source prompt and its destination, and the same behind each prefix.
    """
    found: list[tuple[Tensor, Weights]] = []
    for old, new in pairs:
        before, after = encoded(pipe, old, new)
        a, b = (pipe.tokenizer(text).input_ids for text in (old, new))
        to: list[int] = []
        for token in a:  # every source token stands in the destination, in order
            to.append(b.index(token, to[-1] + 1 if to else 0))
        to += range(to[-1] + 1, len(before))
        to += [len(before) - 1] * (len(before) - len(to))
        found.append((before.to(weights[0]), all_values(weights, after[to].to(weights[0]))))
    return [new_matrix(weights[i], [(rows, values[i], 1.0) for rows, values in found], ridge) for i in which]


def rece_epoch(pipe: Any, weights: Weights, base: Weights, text: str, which: Sequence[int]) -> Weights:
    """Run one epoch of RECE's code: derive all rows, then erase them as UCE of 2023 does, from the current matrices."""
    encoded(pipe, text)  # the code encodes the concept here, and again below
    target, concept = encoded(pipe, " ")[0], encoded(pipe, text)[0]
    width = weights[0].shape[1]
    normal, mixed = 0.1 * torch.eye(width), torch.zeros(width, width)
    for new, old in zip(weights, base, strict=True):
        normal, mixed = normal + new.T @ new, mixed + new.T @ old
    derived = concept @ (torch.inverse(normal) @ mixed).T
    found = []
    for index in which:
        terms = [(derived, all_values(weights, target)[index], 1.0)]
        same = encoded(pipe, " ", " ")[0]
        terms.append((same, all_values(weights, same)[index], 0.1))
        found.append(new_matrix(weights[index], terms, 0.1))
    return found


def extrapolated(cost: Callable[[int, int], float], erase: int, keep: int, few: int, more: int) -> float:
    """Return the cost of many texts from that of few: it is linear in both numbers."""
    start = cost(few, min(keep, few))
    each = (cost(more, min(keep, few)) - start) / (more - few)
    kept = (cost(few, more) - start) / (more - few) if keep > few else 0.0
    return start + (erase - few) * each + max(0, keep - few) * kept


__all__ = ["extrapolated", "rece_epoch", "time", "uce_2023", "uce_2025"]
