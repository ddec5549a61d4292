"""A learnable prompt inside cross-attention: concatenated with the text or added to it (KPOP, table 1)."""

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from efface.edits.check import How, Where
from efface.edits.edit import Edit
from efface.edits.key import prompt_of
from efface.errors import BadEdit
from efface.models.attention import layers
from efface.models.model import Model
from efface.models.share_weights import with_weights
from efface.util.files import sha256_tensors


def inject(model: Model, prompt: Float[Tensor, "p m dim"], how: How, where: Where) -> list[RemovableHandle]:
    """Make the cross-attention layers of some blocks read [c, p] or c + p instead of the text c.

    prompt: one for all rows of a batch, or one a row. Raises `BadInput` for a model without cross-attention.
    """
    blocks = tuple({"mid": "mid_block", "up": "up_blocks", "down": "down_blocks"}[word] for word in where.split("-"))

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        c = kwargs["encoder_hidden_states"]
        p = prompt.to(c.dtype)
        if how == "add" and p.shape[1] not in (1, c.shape[1]):
            raise BadEdit(f"this key adds {p.shape[1]} vectors to the {c.shape[1]} of a text: it is of another model")
        joined = c + p if how == "add" else torch.cat([c, p.expand(len(c), -1, -1)], 1)
        return args, {**kwargs, "encoder_hidden_states": joined}

    return [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for name, module in layers(model).items()
        if name.startswith(blocks)
    ]


def prompted(model: Model, prompt: Float[Tensor, "p m dim"], how: How, where: Where) -> Model:
    """Return a model that also reads a learned prompt; it shares all weights with this one, which is not changed.

    It is a view, since temporary hooks would be gone when gradient checkpointing runs the layers again.
    prompt: one for all rows of a batch, or one a row.
    """
    pipe = copy.copy(model.pipe)
    setattr(pipe, model.family.DENOISER, with_weights(model.denoiser, {}))
    view = replace(model, pipe=pipe)
    inject(view, prompt, how, where)
    return view


def unlocked(model: Model, key: Edit, concept: str = "") -> Model:
    """Return the sanitized model with the key's prompt, which generates the concept again (section 5.6.4).

    concept: which one, where the key has a prompt for each; the others stay erased.
    Raises: BadEdit for an edit that is not a key, or a key for another width of text; BadInput or UnknownName when
    `concept` is missing or not among those of the key.
    """
    prompt = prompt_of(key, concept)
    if prompt.shape[-1] != model.width:
        raise BadEdit(f"this key has width {prompt.shape[-1]}, {model.name or 'this model'} reads {model.width}")
    how, where = key.meta["key"]["mechanism"], key.meta["key"]["where"]
    content = sha256_tensors({"prompt": prompt})  # an edit's own id leaves `extra` out
    return replace(prompted(model, prompt.to(model.device), how, where), origin=(model, f"key {how} {where} {content}"))
