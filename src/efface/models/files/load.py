"""Load a diffusers pipeline from what a user names: a model that ships, a folder, a single file, a hub id."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadModel, EffaceError, unknown
from efface.models.family import family_of, known_families
from efface.models.files.checkpoint import one_line, silent_libraries
from efface.util.files import PICKLES, safetensors_meta
from efface.util.shipped import SHIPPED

if TYPE_CHECKING:
    import torch

    from efface.models.files.checkpoint import Checkpoint
    from efface.models.files.single_file import Prediction


def load_pipe(
    where: str | os.PathLike[str],
    dtype: "torch.dtype",
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: "Prediction" = "",
) -> tuple[Any, str]:
    """Return (pipeline in evaluation mode without gradients, name)."""
    name = os.fspath(where)
    path = SHIPPED[name].weights if name in SHIPPED else Path(where)
    pipe = _own_file(path, dtype)
    pipe = find_checkpoint(where, tokenizer, prediction).pipeline(dtype) if pipe is None else pipe
    _check_parts(pipe, name)
    pipe.set_progress_bar_config(disable=True)
    return pipe, name


def _own_file(path: Path, dtype: "torch.dtype") -> Any:
    """Return the pipeline of a file in the own format of a family, None for anything else."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return None
    found = (family.own_file(path, dtype) for family in known_families())
    return next((pipe for pipe in found if pipe is not None), None)


def find_checkpoint(
    where: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: "Prediction" = "",
) -> "Checkpoint":
    """Return the checkpoint that a user names; raises `BadFile`, `BadModel` and `UnknownName`."""
    from efface.models.files.folder import Folder

    name, path = os.fspath(where), Path(where)
    if name in SHIPPED:
        path = SHIPPED[name].weights
        if not (path.is_file() or (path / "model_index.json").is_file()):
            raise BadModel(
                f"the embedded model {name} has no weights in this installation (make them with `make mini`, or "
                "`python -m experiments.digits train`)"
            )
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
        raise unknown("model", name, [*SHIPPED, *_neighbours(parent)])
    try:
        with silent_libraries():
            return Path(DiffusionPipeline.download(name, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        raise BadModel(
            f"cannot load {name!r}: no such path exists, and neither the Hugging Face hub nor its cache on this "
            f"machine could provide it ({one_line(error)})"
        ) from error


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file may be a model: safetensors, and none of efface's own."""
    try:
        return path.suffix == ".safetensors" and not any(key.startswith("efface") for key in safetensors_meta(path))
    except EffaceError:
        return False


def _neighbours(parent: Path) -> list[str]:
    """Return the models in the folder of a missing one, to find what was meant."""
    try:
        return [
            os.fspath(parent / entry.name)
            for entry in parent.iterdir()
            if _is_checkpoint(entry) or (entry / "model_index.json").is_file()
        ]
    except OSError:
        return []


def _check_parts(pipe: Any, name: str) -> None:
    missing = [part for part in ("vae", "text_encoder", "tokenizer") if getattr(pipe, part, None) is None]
    if missing:
        raise BadModel(f"{name} is a {type(pipe).__name__}, which has no {missing[0]}")
    family_of(pipe)
