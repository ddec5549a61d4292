"""The two functions most scripts need: load a model, erase a concept."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from efface import concept as concepts
from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.models.files.single_file import Prediction
from efface.models.model import Model
from efface.util.ranges import short


def load(
    where: str | os.PathLike[str] = "mini",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: Prediction = "",
) -> Model:
    """Load a model: "mini", a diffusers folder, a hub id, or a .safetensors checkpoint; see `Model.load`.

    >>> import efface
    >>> model = efface.load("mini")
    >>> images = model.generate([efface.Query("a picture of a church", seed=0)])
    """
    if not isinstance(where, str | os.PathLike):
        raise BadInput(f"a model is a name or a path, got {short(where)}")
    if not isinstance(dtype, torch.dtype):
        raise BadInput(f"dtype is a torch.dtype such as torch.float32, got {short(dtype)}")
    return Model.load(where, device, dtype, tokenizer, prediction)


def erase(
    model: Model,
    erase: str | Concept | Sequence[str | Concept],
    method: str = "uce",
    preserve: str | Concept | Sequence[str | Concept] = (),
    seed: int = 0,
    preset: str = "",
    **fields: Any,
) -> Edit:
    """Erase one or more concepts and return the edit; the model stays as it is.

    erase, preserve: a concept or its name, or several. Names are looked up in the model's concept table when it has
    one. `fields` are the method's hyper-parameters.
    Raises `UnknownName` (method, preset, field, concept) or `BadInput`.

    >>> edit = efface.erase(model, "church", method="uce", preserve=["house"])
    >>> edit.save("church.safetensors")
    >>> with edit.applied(model) as edited:
    ...     images = edited.generate([efface.Query("a picture of a church", seed=0)])
    """
    chosen = registry.get("methods", method).preset(preset, **fields)
    if not isinstance(model, Model):
        raise BadInput(f"erase needs a Model, as efface.load returns it, got {short(model)}")
    erased, preserved = (
        Concept.all_of(values, what, lambda name: concepts.find(name, model.name))
        for what, values in (("erase", erase), ("preserve", preserve))
    )
    return chosen(model, erased, preserved, seed)
