"""T5's vocabulary for checkpoints without one: from a folder beside CLIP's, else from the hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.models.files.tokenizer import PADDED

HUB_ID = "google/t5-v1_1-xxl"
FOLDER = "tokenizer_3"  # its name in a diffusers folder of Stable Diffusion 3
FILES = ("tokenizer.json", "spiece.model")


def find_t5(checkpoint: Path, given: str | os.PathLike[str] | None, wanted: Mapping[str, Any]) -> Any:
    """Return the T5 tokenizer of a checkpoint.

    Looks for a folder "tokenizer_3" in the folder given, beside it, and beside the checkpoint, and then at the hub.
    wanted: {vocab_size, model_max_length}. Raises `BadModel` when there is none, or one of another size.
    """
    from huggingface_hub import hf_hub_download
    from transformers import T5Tokenizer

    homes = [*((Path(given), Path(given).parent) if given is not None else ()), checkpoint.parent]
    folders = [home / FOLDER for home in homes if any((home / FOLDER / name).is_file() for name in FILES)]
    try:
        where = folders[0] if folders else Path(hf_hub_download(HUB_ID, "spiece.model")).parent
        words = T5Tokenizer.from_pretrained(str(where), local_files_only=True)
    except Exception as error:  # the library that reads the vocabulary raises nothing narrower
        raise BadModel(
            f"{checkpoint} needs T5's vocabulary, which is not in the file: put it into a folder {FOLDER} beside the "
            f"checkpoint or beside the folder given as tokenizer= ({' '.join(str(error).split())[:200]})"
        ) from error
    if not 0 <= wanted["vocab_size"] - len(words) < 2 * PADDED:
        raise BadModel(f"the tokenizer in {where} has {len(words)} tokens, {checkpoint} needs {wanted['vocab_size']}")
    words.model_max_length = min(words.model_max_length, wanted["model_max_length"])
    return words
