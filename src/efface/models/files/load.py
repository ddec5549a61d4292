"""Load a diffusers pipeline from what a user names: "mini", a folder, a single file, a hub id."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadModel, unknown
from efface.models.family import family_of
from efface.util.files import PICKLES, check_safetensors

if TYPE_CHECKING:
    import torch

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
    with silent_libraries():
        pipe = _load(name, Path(name), dtype, tokenizer, prediction)
    _check_parts(pipe, name)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        if module.dtype != dtype:
            module.to(dtype)
        module.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, name


def _load(name: str, path: Path, dtype: "torch.dtype", tokenizer: Any, prediction: "Prediction") -> Any:
    if name == "mini":
        if not (MINI / "model_index.json").is_file():
            raise BadModel("the embedded model mini has no weights in this installation (make them with `make mini`)")
        return _from_folder(MINI, dtype)
    if path.is_dir():
        return _from_folder(path, dtype)
    if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
        check_safetensors(path)
        from efface.models.files.single_file import load_single_file

        return load_single_file(path, dtype, tokenizer, prediction)
    return _from_hub(name, dtype)


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep the libraries' own progress bars off the terminal."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in logs:
            log.enable_progress_bar()


def _from_folder(path: Path, dtype: "torch.dtype") -> Any:
    if not (path / "model_index.json").is_file():
        raise BadModel(f"{path} is not a diffusers model folder: it has no model_index.json")
    files = sorted(path.rglob("*.safetensors"))
    if not files:
        raise BadModel(f"{path} holds no .safetensors weights; pickled ones (.bin) are not read: convert them first")
    for file in files:
        check_safetensors(file)
    try:
        return _from_pretrained(str(path), dtype, local_files_only=True, **_without_checker(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadModel(f"{path} cannot be loaded by diffusers: {_one_line(error)}") from error


def _without_checker(path: Path) -> dict[str, Any]:
    """Return options that leave the safety checker out, which is no part of what is edited or measured."""
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        return {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    except (OSError, ValueError, TypeError) as error:
        raise BadModel(f"{path / 'model_index.json'} is not valid JSON") from error


def _from_pretrained(where: str, dtype: "torch.dtype", **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings():  # newer versions call the argument dtype, older ones know torch_dtype only
        warnings.filterwarnings("ignore", "`torch_dtype`", FutureWarning)
        return DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, use_safetensors=True, **options)


def _from_hub(name: str, dtype: "torch.dtype") -> Any:
    parent = Path(name).parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or parent.is_dir():
        raise unknown("model", name, ["mini", *_neighbours(parent)])
    try:
        return _from_pretrained(name, dtype)
    except (OSError, ValueError) as error:
        raise BadModel(
            f"cannot load {name!r}: no such path exists, and neither the Hugging Face hub nor its cache on this "
            f"machine could provide it ({_one_line(error)})"
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_parts(pipe: Any, name: str) -> None:
    missing = [part for part in ("vae", "text_encoder", "tokenizer") if getattr(pipe, part, None) is None]
    if missing:
        raise BadModel(f"{name} is a {type(pipe).__name__}, which has no {missing[0]}")
    family_of(pipe)
