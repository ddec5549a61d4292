"""Keys: learned prompts with which a sanitized model generates again what was erased (KPOP, section 5.6.4).

A key is an `Edit` that changes no weight. Its prompts are in `extra`: either one, "prompt", which opens every erased
concept, or "prompt.NAME" for each concept, which opens that one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from efface.edits.check import check_key
from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput, unknown
from efface.util.untrusted import shorten


def tensor_names(concepts: Sequence[str], each: bool) -> tuple[str, ...]:
    """Return the names of a key's prompts among its tensors."""
    return tuple(f"prompt.{name}" for name in concepts) if each else ("prompt",)


def make_key(
    prompts: Mapping[str, Float[Tensor, "1 m dim"]], concepts: Sequence[str], about: Mapping[str, Any]
) -> Edit:
    """Return a key.

    prompts: by the names of `tensor_names`. concepts: the concepts it opens. about: how the prompts are read.
    """
    return Edit(
        extra=dict(prompts), meta={"key": {**about, "concepts": list(concepts), "each": "prompt" not in prompts}}
    )


def chosen(about: Any, concept: str = "") -> str:
    """Return the name of the prompt that opens a concept, among a key's tensors.

    about: "key" in the edit's `meta`, None for an edit that is no key. concept: may be "" where one prompt opens all.
    Raises: BadEdit for an edit that is no key or a damaged one, UnknownName for a concept that the key does not open,
    BadInput when one must be chosen.
    """
    check_key(about)
    known = about["concepts"]
    if concept and concept not in known:
        raise unknown("concept of this key", concept, known)
    if about["each"] and not concept and len(known) > 1:
        raise BadInput(f"this key has a prompt for each of {', '.join(known)}: choose one of them")
    return f"prompt.{concept or known[0]}" if about["each"] else "prompt"


def prompt_of(key: Edit, concept: str = "") -> Float[Tensor, "1 m dim"]:
    """Return the prompt that opens a concept. Raises what `chosen` does, and BadEdit for one missing or damaged."""
    name = chosen(key.meta.get("key"), concept)
    if name not in key.extra:
        raise BadEdit(f"this key is incomplete: it has no {shorten(name)}")
    prompt = key.extra[name]
    if prompt.dim() != 3 or len(prompt) != 1 or not prompt.numel():
        raise BadEdit(f"this key is damaged: {shorten(name)} is {list(prompt.shape)}, expected [1, tokens, width]")
    if not prompt.is_floating_point() or not bool(prompt.float().isfinite().all()):
        raise BadEdit(f"this key is damaged: {shorten(name)} has values that are not finite numbers")
    return prompt


def only(key: Edit, concept: str) -> Edit:
    """Return a key that opens one concept, to hand out without the prompts of the others.

    Raises: what `prompt_of` does, and BadEdit where one prompt opens all concepts.
    """
    prompt = prompt_of(key, concept)
    if not key.meta["key"]["each"]:
        raise BadEdit(f"this key cannot be split: one prompt opens {', '.join(key.meta['key']['concepts'])}")
    about = {**key.meta["key"], "concepts": [concept]}
    return replace(key, extra={f"prompt.{concept}": prompt}, meta={**key.meta, "key": about})
