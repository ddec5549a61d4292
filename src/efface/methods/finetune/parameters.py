"""Trained weights: a named set of the family, a pattern, or the text encoder's token embeddings."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import BadInput
from efface.models.model import Model


def select(model: Model, params: str) -> dict[str, nn.Parameter]:
    """Return the weights of a named set, or of the names that match a pattern.

    Raises: BadInput if there are none.
    """
    test = model.family.parameter_set(params) or (lambda name: fnmatch(name, params))
    weights = model.weights("text_encoder" if params == "embedding" else None)  # of all text encoders
    chosen = {name: p for name, p in weights.items() if test(name)}
    if not chosen:
        raise BadInput(f"params {params!r} matches no weight (sets: {', '.join(model.family.SETS)}; or *attn2*)")
    return chosen


def detach_start(model: Model) -> None:
    """Stop the gradient through the start token in the keys and values of every cross-attention layer.

    In joint attention (SD3, FLUX) there is none: the text there is changed from block to block.
    """

    def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1].detach(), out[:, 1:]], 1)

    for name in model.text_weights():
        path = name.removeprefix(f"{model.family.DENOISER}.").removesuffix(".weight")
        if not path.endswith((".to_k", ".to_v")):
            continue
        model.denoiser.get_submodule(path).register_forward_hook(hook)


def only_tokens(model: Model, texts: Sequence[str], optimizer: torch.optim.Optimizer) -> None:
    """Restrict training to the token embeddings of some words."""
    found = [model.tokens(text) for text in texts]
    rows = sorted({i for tokens in found for i in tokens.words})
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # it would reach every row
    for p in select(model, "embedding").values():
        mask = torch.zeros(len(p), 1, device=p.device).index_fill(0, torch.tensor(rows, device=p.device), 1.0)
        p.register_hook(lambda gradient, mask=mask: gradient * mask)
