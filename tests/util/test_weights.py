"""Weights from the user's files: any safetensors; a pickle only when it is one that torchvision publishes."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from efface.errors import BadFile
from efface.util import weights
from efface.util.files import save_safetensors


def published(path: Path, value: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a pickle under a name that ends in the beginning of its sha256, and let it be published."""
    torch.save(value, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.rename(path.with_name(f"net-{digest[:8]}.pth"))
    monkeypatch.setattr(weights, "PUBLISHED", (named.name,))
    return named


def test_a_published_file_is_read_as_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path / "x.pth", {"a": torch.arange(3.0)}, monkeypatch)
    assert weights.load_weights(path)["a"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BadFile, match="damaged, or not the file that torchvision publishes"):
        weights.load_weights(path)


class Trap:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_pickle_runs_no_code_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = published(tmp_path / "x.pth", {"a": Trap()}, monkeypatch)
    with pytest.raises(BadFile, match="cannot be read"):
        weights.load_weights(path)
    with pytest.raises(BadFile, match="is a pickle file"):
        weights.load_weights(path.rename(tmp_path / "mine.pth"))
    assert not (tmp_path / "trapped").exists()


def test_files_and_folders_have_hashes_of_their_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.safetensors", tmp_path / "folder"
    save_safetensors(file, {"a": torch.ones(1)})
    folder.mkdir()
    (folder / "b").write_bytes(b"one")
    first, whole = weights.sha256_file(file), weights.sha256_file(folder)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "c").write_bytes(b"two")
    assert weights.sha256_file(folder) != whole
    (folder / "c").unlink()
    assert weights.sha256_file(folder) == whole
    with pytest.raises(BadFile, match="cannot read"):
        weights.sha256_file(tmp_path / "nosuch")


def test_the_cache_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from torch.hub import get_dir

    assert weights.torchvision_cache() == Path(get_dir()) / "checkpoints"
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert weights.torchvision_cache() == Path(get_dir()) / "checkpoints"
    assert weights.find_weights("", "x.pth") is None
    assert weights.find_weights(str(tmp_path / "nosuch"), "x.pth") is None
