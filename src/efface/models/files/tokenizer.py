"""CLIP's vocabulary for checkpoints without one: from this machine, else from the hub."""

import copy
import gzip
import json
import os
import re
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.util import untrusted

MERGES = 49152 - 256 - 2  # of CLIP's vocabulary of 49,408: two alphabets of 256, the merges, start and end
HUB_ID = "openai/clip-vit-large-patch14"
MAX_WORDS = 4_000_000
MAX_LENGTH = 65536  # tokens, of a text encoder that states none
PADDED = 64  # a text encoder may have fewer rows than this beyond its vocabulary
SPECIAL = re.compile(r"<.+>")
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


def open_folder(folder: Path, encoder: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a model folder; encoder: its text encoder's configuration.

    Raises `BadModel` for one that is incomplete or does not fit the text encoder.
    """
    words = _from_folder(folder)
    size, length = encoder.get("vocab_size", len(words)), encoder.get("max_position_embeddings", MAX_LENGTH)
    if not 0 <= size - len(words) < PADDED:
        raise BadModel(f"the tokenizer in {folder} has {len(words)} tokens, its text encoder reads {size}")
    most = words.model_max_length
    if not untrusted.is_count(most, 3, length):
        raise BadModel(
            f"the tokenizer in {folder} is incomplete: its prompts have up to {untrusted.shorten(str(most))} tokens, "
            f"those of its text encoder 3 to {length} (model_max_length in tokenizer_config.json)"
        )
    return words


def _from_folder(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    _check_files(folder)
    try:
        words = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library that reads the vocabulary raises nothing narrower
        raise BadModel(f"cannot read the tokenizer in {folder}: {' '.join(str(error).split())[:200]}") from error
    if words.bos_token_id is None or words.eos_token_id is None:
        raise BadModel(f"the tokenizer in {folder} is incomplete: it has no token for the start or the end")
    return words


def _check_files(folder: Path) -> None:
    """Raise `BadModel` unless a tokenizer's files have a merge for every piece of more than one character.

    transformers splits all words into characters when merges are missing, and replaces a missing vocabulary by none.
    """
    pair, whole = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    if all(path.is_file() for path in pair):
        lines = untrusted.read_text(pair[1], BadModel).split("\n")
        merges = [line for i, line in enumerate(lines) if line.strip() and (i or not line.startswith("#version"))]
        _check_merges(folder, _json(pair[0]), merges)
    elif not whole.is_file():
        raise BadModel(f"{folder} is no tokenizer folder: it has neither vocab.json with merges.txt nor tokenizer.json")
    if whole.is_file():
        model = _json(whole).get("model")
        model = model if isinstance(model, dict) else {}
        _check_merges(folder, model.get("vocab"), model.get("merges"))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            _json(folder / name)


def _json(path: Path) -> dict[str, Any]:
    what = f"cannot read the tokenizer in {path.parent}: {path.name}"
    return untrusted.parse(untrusted.read_text(path, BadModel), what, BadModel)


def _check_merges(folder: Path, vocabulary: Any, merges: Any) -> None:
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not vocabulary:
        raise BadModel(f"the tokenizer in {folder} is incomplete: it has no vocabulary or no merges")
    ids = list(vocabulary.values())
    if not all(untrusted.is_count(i, 0, MAX_WORDS) for i in ids) or len(set(ids)) < len(ids):
        raise BadModel(
            f"cannot read the tokenizer in {folder}: its vocabulary gives no number of its own to each token"
        )
    long = [piece for piece in vocabulary if len(piece.removesuffix("</w>")) > 1 and not SPECIAL.fullmatch(piece)]
    if len(merges) < len(long):
        raise BadModel(
            f"the tokenizer in {folder} is incomplete: it has {len(merges)} merges for {len(long)} pieces of words"
        )


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
