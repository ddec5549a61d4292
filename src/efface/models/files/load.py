"""Load a diffusers pipeline from what a user names: "mini", a folder, a single file, a hub id."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadModel, unknown
from efface.models.family import family_of
from efface.models.files.checkpoint import one_line, silent_libraries
from efface.util.files import PICKLES

if TYPE_CHECKING:
    import torch

    from efface.models.files.checkpoint import Checkpoint
    from efface.models.files.single_file import Prediction

MINI = Path(__file__).parents[2] / "mini" / "weights"


def load_pipe(
    where: str | os.PathLike[str],
    dtype: "torch.dtype",
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: "Prediction" = "",
) -> tuple[Any, str]:
    """Return (pipeline in evaluation mode without gradients, name)."""
    name = os.fspath(where)
    pipe = find_checkpoint(where, tokenizer, prediction).pipeline(dtype)
    _check_parts(pipe, name)
    pipe.set_progress_bar_config(disable=True)
    return pipe, name


def find_checkpoint(
    where: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: "Prediction" = "",
) -> "Checkpoint":
    """Return the checkpoint that a user names; raises `BadFile`, `BadModel` and `UnknownName`."""
    from efface.models.files.folder import Folder

    name, path = os.fspath(where), Path(where)
    if name == "mini":
        if not (MINI / "model_index.json").is_file():
            raise BadModel("the embedded model mini has no weights in this installation (make them with `make mini`)")
        return Folder.open(MINI)
    if path.is_dir():
        return Folder.open(path)
    if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
        from efface.models.files.single_file import SingleFile

        return SingleFile.open(path, tokenizer, prediction)
    return Folder.open(_from_hub(name))


def _from_hub(name: str) -> Path:
    """Return the folder of a model on the hub, downloaded unless this machine has it."""
    from diffusers import DiffusionPipeline

    parent = Path(name).parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or parent.is_dir():
        raise unknown("model", name, ["mini", *_neighbours(parent)])
    try:
        with silent_libraries():
            return Path(DiffusionPipeline.download(name, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise BadModel(
            f"cannot load {name!r}: no such path exists, and neither the Hugging Face hub nor its cache on this "
            f"machine could provide it ({one_line(error)})"
        ) from error


def _neighbours(parent: Path) -> list[str]:
    """Return the models in the folder of a missing one, to find what was meant."""
    try:
        return [
            os.fspath(parent / entry.name)
            for entry in parent.iterdir()
            if entry.suffix == ".safetensors" or (entry / "model_index.json").is_file()
        ]
    except OSError:
        return []


def _check_parts(pipe: Any, name: str) -> None:
    missing = [part for part in ("vae", "text_encoder", "tokenizer") if getattr(pipe, part, None) is None]
    if missing:
        raise BadModel(f"{name} is a {type(pipe).__name__}, which has no {missing[0]}")
    family_of(pipe)
