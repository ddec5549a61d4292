import gzip
import importlib.machinery
from pathlib import Path

import pytest

from efface.errors import BadModel
from efface.models.files import tokenizer


@pytest.fixture
def merges(tmp_path: Path) -> Path:
    """Return a short list of merges as CLIP's package has it: a title line, then one pair a line."""
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', "c a", "ca t</w>", "d o", "do g</w>", "beyond the"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_a_tokenizer_from_merges(merges: Path):
    words = tokenizer.from_merges(merges, count=4)
    assert len(words) == 512 + 4 + 2
    assert words("cat dog").input_ids == [516, 513, 515, 517]
    assert words.model_max_length == 77
    assert tokenizer("a!").input_ids[1:-1] == [256 + ord("a") - ord("!"), 256]


def test_bytes_are_in_the_order_of_clip():
    letters = tokenizer._letters()
    assert len(letters) == len(set(letters)) == 256
    assert letters[0] == "!"  # the padding of Stable Diffusion 2.x
    assert letters[ord("a") - ord("!")] == "a"
    assert letters[188] == "Ā"  # the byte 0, the first of those without a character of their own


def test_the_vocabulary_of_an_installed_package_is_used(merges: Path, monkeypatch, tmp_path: Path):
    spec = importlib.machinery.ModuleSpec("open_clip", None, is_package=True)
    spec.submodule_search_locations = [str(merges.parent)]
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: spec if name == "open_clip" else None)
    monkeypatch.setattr(tokenizer, "_cached", lambda: None)
    monkeypatch.setattr(tokenizer, "MERGES", 4)
    words = tokenizer.find_tokenizer(tmp_path / "model.safetensors", None, 518, pad="!")
    assert words.pad_token_id == 0
    with pytest.raises(BadModel, match=r"the tokenizer has 518 tokens, .* needs 49408"):
        tokenizer.find_tokenizer(tmp_path / "model.safetensors", None, 49408)


def test_a_given_folder_must_be_one(tmp_path: Path):
    with pytest.raises(BadModel, match="is no tokenizer folder"):
        tokenizer.find_tokenizer(tmp_path / "model.safetensors", tmp_path, 5)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match="cannot read the tokenizer"):
        tokenizer.find_tokenizer(tmp_path / "model.safetensors", tmp_path, 5)
