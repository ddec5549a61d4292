"""Which weights a method trains: named sets of the UNet's, a pattern, or the text encoder's token embeddings."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import BadInput
from efface.models.model import Model

ENDS = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")
SETS: dict[str, Callable[[str], bool]] = {
    "x": lambda name: ".attn2." in name,
    "x-strict": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "u": lambda name: ".attn2." not in name and not name.startswith(ENDS),
    "u-linear": lambda name: ".attn2." not in name and "norm" not in name,
    "selfattn": lambda name: ".attn1." in name,
    "attn": lambda name: ".attn1." in name or ".attn2." in name,
    "to_out": lambda name: ".to_out." in name,
    "full": lambda name: True,
    "embedding": lambda name: name.endswith("token_embedding.weight"),
}


def select(model: Model, params: str) -> dict[str, nn.Parameter]:
    """Return the weights of a named set, or of the names that match a pattern.

    Raises: BadInput if there are none.
    """
    test = SETS.get(params, lambda name: fnmatch(name, params))
    weights = model.weights("text_encoder." if params == "embedding" else "unet.")
    chosen = {name: p for name, p in weights.items() if test(name)}
    if not chosen:
        raise BadInput(f"params {params!r} matches no weight (sets: {', '.join(SETS)}; or *attn2*)")
    return chosen


def detach_start(model: Model) -> None:
    """Stop the gradient from the first position, the start token, of every key and value of the text."""

    def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:, :1].detach(), out[:, 1:]], 1)

    for name in model.cross_attention():
        path = name.removeprefix("unet.").removesuffix(".weight")
        model.unet.get_submodule(path).register_forward_hook(hook)


def only_tokens(model: Model, texts: Sequence[str], optimizer: torch.optim.Optimizer) -> None:
    """Train the token embeddings of some words and leave all others as they are."""
    found = [model.tokens(text) for text in texts]
    rows = sorted({i for tokens in found for i in tokens.ids[1 : tokens.eos]})
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # it would reach every row
    for p in select(model, "embedding").values():
        mask = torch.zeros(len(p), 1, device=p.device).index_fill(0, torch.tensor(rows, device=p.device), 1.0)
        p.register_hook(lambda gradient, mask=mask: gradient * mask)
