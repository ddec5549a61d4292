import errno
import os
import pickle
import stat
import struct
from pathlib import Path

import pytest
import torch

from efface.errors import BadFile, WriteError
from efface.util import files

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    files.save_safetensors(path, TENSORS, {"efface": "{}"})
    return path


def test_save_and_load_round_trip(saved: Path):
    tensors, meta = files.load_safetensors(saved)
    assert meta == {"efface": "{}"}
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )
    assert files.safetensors_meta(saved) == {"efface": "{}"}
    assert files.check_safetensors(saved)["a"]["shape"] == [2, 3]
    assert stat.S_IMODE(saved.stat().st_mode) & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_tensors_that_share_memory_are_saved(tmp_path: Path):
    shared = torch.ones(3)
    files.save_safetensors(tmp_path / "x.safetensors", {"a": shared, "b": shared, "c": shared[:2]})
    tensors, _ = files.load_safetensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["c"], shared[:2])


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(BadFile, match=r"truncated|not a safetensors"):
        files.load_safetensors(saved)


def test_a_file_with_something_appended_is_refused(saved: Path):
    saved.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(BadFile, match="damaged"):
        files.load_safetensors(saved)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 1}),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"hello world, this is text",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 7) + b'{"a":1}',
        struct.pack("<Q", 30) + b'{"a":{"data_offsets":["x","y"]',
        struct.pack("<Q", 2**62) + b"{}",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"x\.safetensors"):
        files.load_safetensors(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".PTH"])
def test_a_pickle_is_refused_with_advice(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(BadFile, match=r"convert it to \.safetensors"):
        files.check_safetensors(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(BadFile, match="does not exist"):
        files.load_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(BadFile, match="is a folder"):
        files.load_safetensors(tmp_path)


def test_writing_replaces_the_file_only_on_success(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.writing(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with files.writing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_a_write_error(tmp_path: Path):
    with pytest.raises(WriteError, match=r"cannot write .*none"):
        files.save_safetensors(tmp_path / "none" / "x.safetensors", TENSORS)


def test_a_folder_that_is_not_writable_is_a_write_error(tmp_path: Path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # chmod does not stop root, who may run the tests
    with pytest.raises(WriteError, match="Permission denied"):
        files.save_safetensors(tmp_path / "x.safetensors", TENSORS)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, small_disk):
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with small_disk(), pytest.raises(WriteError, match="cannot write") as caught:
        files.save_safetensors(path, {"a": torch.zeros(100_000)})
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_hashes_depend_on_names_shapes_and_values_only():
    x = torch.arange(6.0)
    known = files.sha256_tensors({"a": x, "b": x})
    assert files.sha256_tensors({"b": x.bfloat16(), "a": x.double()}) == known
    assert files.sha256_tensors({"a": x.reshape(2, 3), "b": x}) != known
    assert files.sha256_tensors({"a": x, "c": x}) != known
    assert files.sha256_tensors({"a": x, "b": x + 1e-6}) != known
    assert files.sha256_tensors({"a": x.flip(0).flip(0), "b": x}) == known
    assert files.sha256_tensors({"n": torch.tensor(3)}) != files.sha256_tensors({"n": torch.tensor(4)})
    assert len(files.sha256_text("x")) == 64
