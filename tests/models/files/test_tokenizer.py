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


def want(size: int, pad: str = "") -> dict[str, int | str]:
    return {"vocab_size": size, "model_max_length": 16, "pad_token": pad}


def test_a_tokenizer_from_merges(merges: Path):
    words = tokenizer.from_merges(merges, count=4)
    assert len(words) == 512 + 4 + 2
    assert words("cat dog").input_ids == [516, 513, 515, 517]
    assert words.model_max_length == 77
    assert words("a!").input_ids[1:-1] == [256 + ord("a") - ord("!"), 256]


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
    words = tokenizer.find_tokenizers(tmp_path / "model.safetensors", None, {"tokenizer": want(518, "!")})["tokenizer"]
    assert words.pad_token_id == 0
    with pytest.raises(BadModel, match=r"the tokenizer has 518 tokens, .* needs 49408"):
        tokenizer.find_tokenizers(tmp_path / "model.safetensors", None, {"tokenizer": want(49408)})


def test_a_given_folder_must_be_one(tmp_path: Path):
    with pytest.raises(BadModel, match="is no tokenizer folder"):
        tokenizer.find_tokenizers(tmp_path / "model.safetensors", tmp_path, {"tokenizer": want(5)})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match="cannot read the tokenizer"):
        tokenizer.find_tokenizers(tmp_path / "model.safetensors", tmp_path, {"tokenizer": want(5)})


def test_two_tokenizers_of_one_vocabulary_pad_each_in_its_own_way(folder_xl: Path):
    wanted = {"tokenizer": want(560, "<|endoftext|>"), "tokenizer_2": want(560, "!")}
    folder = folder_xl / "tokenizer"
    size = len(tokenizer._from_folder(folder))
    wanted = {name: {**one, "vocab_size": size} for name, one in wanted.items()}
    found = tokenizer.find_tokenizers(folder_xl.with_suffix(".safetensors"), folder, wanted)
    for name in found:
        stored = tokenizer._from_folder(folder_xl / name)
        for prompt in ("", "a church", "a church! wow", "house " * 30):
            options = {"padding": "max_length", "max_length": 16, "truncation": True}
            assert found[name](prompt, **options).input_ids == stored(prompt, **options).input_ids, (name, prompt)
    first, second = (found[name]("a dog", padding="max_length", max_length=16).input_ids for name in found)
    assert first[:4] == second[:4]
    assert set(first[4:]) == {size - 1}
    assert set(second[4:]) == {0}
