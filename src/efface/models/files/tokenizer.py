"""CLIP's vocabulary for checkpoints without one: from this machine, else from the hub."""

import copy
import gzip
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efface.errors import BadModel

MERGES = 49152 - 256 - 2  # of CLIP's vocabulary of 49,408: two alphabets of 256, the merges, start and end
HUB_ID = "openai/clip-vit-large-patch14"
PACKAGED = (("open_clip", "bpe_simple_vocab_16e6.txt.gz"), ("clip", "bpe_simple_vocab_16e6.txt.gz"))


def find_tokenizers(
    checkpoint: Path, given: str | os.PathLike[str] | None, wanted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the CLIPTokenizers of a checkpoint's text encoders, which share one vocabulary.

    Looks at the folder given, a folder "tokenizer" beside the checkpoint, the hub's cache, the vocabulary in the
    packages open_clip and clip, and the hub, in this order.
    wanted: for every tokenizer by name, {vocab_size, model_max_length, pad_token}. A pad_token of "" stands for that
    of the folder, or CLIP's. Raises `BadModel` when there is none, or one of another size.
    """
    folder = Path(given) if given is not None else checkpoint.parent / "tokenizer"
    own = given is not None or folder.is_dir()
    first = _from_folder(folder) if own else _cached() or _packaged() or _from_hub(checkpoint)
    found = {name: copy.deepcopy(first) for name in wanted}
    for name, want in wanted.items():
        if len(first) != want["vocab_size"]:
            raise BadModel(
                f"the tokenizer has {len(first)} tokens, {checkpoint} needs {want['vocab_size']}: pass its own as "
                "tokenizer="
            )
        found[name].model_max_length = want["model_max_length"]
        if want["pad_token"] and not (own and len(wanted) == 1):
            found[name].add_special_tokens({"pad_token": want["pad_token"]})
    return found


def _from_folder(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise BadModel(f"{folder} is no tokenizer folder: it has neither vocab.json with merges.txt nor tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise BadModel(f"cannot read the tokenizer in {folder}: {' '.join(str(error).split())[:200]}") from error


def _cached() -> Any | None:
    from huggingface_hub import try_to_load_from_cache

    for repository, prefix in ((HUB_ID, ""), ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/")):
        path = try_to_load_from_cache(repository, prefix + "vocab.json")
        if isinstance(path, str) and (Path(path).parent / "merges.txt").is_file():
            return _from_folder(Path(path).parent)
    return None


def _packaged() -> Any | None:
    for package, name in PACKAGED:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if Path(root, name).is_file():
                return from_merges(Path(root, name))
    return None


def from_merges(path: Path, count: int | None = None) -> Any:
    """Return a CLIPTokenizer from CLIP's original list of merges, one pair a line after a title line, gzipped."""
    from transformers import CLIPTokenizer

    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : (count or MERGES) + 1]
    pairs = [line.split() for line in lines]
    letters = _letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory(prefix="efface-") as folder:  # files read alike by transformers 4 and 5
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=77)


def _from_hub(checkpoint: Path) -> Any:
    from huggingface_hub import hf_hub_download

    try:
        paths = [Path(hf_hub_download(HUB_ID, name)) for name in ("vocab.json", "merges.txt")]
        return _from_folder(paths[0].parent)
    except (OSError, ValueError) as error:
        raise BadModel(
            f"{checkpoint} needs CLIP's vocabulary, which is not in the file and not on this machine: pass "
            "tokenizer=<folder with vocab.json and merges.txt>, or install open_clip_torch, which has it"
        ) from error


def _letters() -> list[str]:
    """Return the 256 characters of bytes in byte-level BPE, in the order of CLIP's vocabulary.

    Printable bytes stand for themselves and come first; the others, in order, are the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
