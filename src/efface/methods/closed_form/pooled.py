"""The pooled path: map the pooled vector of a prompt as its token vectors are mapped, by a least squares of its own.

A denoiser with a pooled vector beside the tokens (SDXL, SD3, FLUX) reads a prompt by both, and an edit of the tokens'
weights leaves the second as it was. UCE's own ports do so too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from efface.edits.edit import Edit
from efface.errors import BadModel
from efface.methods.closed_form.matrices import Preserved
from efface.methods.closed_form.prompts import BATCH, Phrase, Rows
from efface.methods.closed_form.states import Mapped
from efface.models.model import Model


def pooled_edit(
    model: Model,
    phrases: Sequence[tuple[Phrase, Phrase]],
    others: Sequence[Phrase],
    ridge: float,
    erase_scale: float,
    preserve_scale: float,
) -> Edit:
    """Return the edit that lets each prompt's pooled vector read as its replacement's, and preserves those of others.

    Where the weight reads more than the pooled vector (SDXL: sizes), the map leaves the rest alone.
    Raises `BadModel` for a model that reads no pooled vector.
    """
    names = tuple(model.family.pooled_weights())
    if not names:
        raise BadModel(f"{model.name or 'this model'} reads no pooled vector: leave pooled out")
    (width,) = {model.weights()[name].shape[1] for name in names}
    every = list(dict.fromkeys([*(one for pair in phrases for one in pair), *others]))
    known = dict(zip(every, _vectors(model, every, width).split(1), strict=True))
    preserved = Preserved.gather((known[one] for one in others), width, preserve_scale)
    edit = Mapped(names, width, lambda: torch.zeros(width, width))
    report: Mapping[str, Any] = edit.erase([(known[a], known[b]) for a, b in phrases], ridge, erase_scale, preserved)
    return edit.edit(report)


@torch.no_grad()
def _vectors(model: Model, phrases: Sequence[Phrase], width: int) -> Rows:
    """Return the pooled vector of each prompt, with zeros for what else the weight reads."""
    found: list[Tensor] = []
    for start in range(0, len(phrases), BATCH):
        pooled = model.encode([phrase.text for phrase in phrases[start : start + BATCH]]).pooled
        assert pooled is not None
        found.append(pooled.float().cpu())
    rows = torch.cat(found)
    return pad(rows, (0, width - rows.shape[1]))


def with_pooled(edit: Edit, pooled: Edit) -> Edit:
    """Return both edits as one, with the report of the second beside that of the first."""
    report = {**edit.meta["closed_form"], "pooled": pooled.meta["closed_form"]}
    return Edit(maps=edit.maps + pooled.maps, delta=edit.delta, meta={"closed_form": report}, extra=edit.extra)


__all__ = ["pooled_edit", "with_pooled"]
