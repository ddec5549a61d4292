"""Closed-form edits of a checkpoint on disk: only the text encoder and the weights that read the text are loaded."""

import os
from collections.abc import Sequence

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.method import Method
from efface.methods.closed_form.method import ClosedForm
from efface.models.files.stream import open_model


def erase(
    method: Method,
    where: str | os.PathLike[str],
    erase: Sequence[Concept | str] | Concept | str,
    preserve: Sequence[Concept | str] = (),
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Edit:
    """Compute a closed-form edit (uce, time, rece, …) of a checkpoint: a diffusers folder or a .safetensors file.

    tokenizer: a folder with CLIP's vocabulary for a single file, see `Model.load`. The edit is the one the loaded
    model gives, except that its provenance has no model id. Raises `BadInput` for a method that needs the whole
    model, `BadFile` or `BadModel` for a checkpoint that is not as expected.
    """
    if not isinstance(method, ClosedForm) or method.generates:
        raise BadInput(f"{type(method).__name__} needs the whole model: it cannot edit a checkpoint on disk")
    return method(open_model(where, tokenizer, method.reads_pooled), erase, preserve, seed)
