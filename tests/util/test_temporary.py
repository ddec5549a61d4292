"""What a killed process leaves behind is removed by the next writer in the folder; what is being written stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from efface.training.checkpoints import State, checkpoints, current
from efface.util import temporary
from efface.util.files import save_safetensors, writing

FILE = """
import sys, time
from efface.util.files import writing
with writing(sys.argv[1]) as path:
    path.write_text("half")
    print(path.parent, flush=True)
    time.sleep(60)
"""
SAVING = """
import sys, time
from pathlib import Path
import torch
from efface.util import files
def fsync(_):  # safetensors is done, and the file is not yet in its place
    print(next(Path(sys.argv[1]).parent.iterdir()), flush=True)
    time.sleep(60)
files.os.fsync = fsync
files.save_safetensors(sys.argv[1], {"a": torch.ones(3)})
"""


@contextmanager
def writer(code: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start a process that stops in the middle of writing; yield it and its temporary folder."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture(params=[FILE, SAVING], ids=["writing", "saving"])
def killed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return what a process that was killed with -9 in the middle of writing left behind."""
    with writer(request.param, tmp_path / "out.safetensors") as (process, left):
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert left.exists()
    return left


def test_the_next_save_in_the_folder_removes_it(killed: Path, tmp_path: Path):
    with writing(tmp_path / "another.txt") as path:
        assert not killed.exists()
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["another.txt"]


def test_a_resumed_training_removes_it(killed: Path, tmp_path: Path):
    with checkpoints(tmp_path):
        current().load("training", {}, State())  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [FILE, SAVING], ids=["writing", "saving"])
def test_what_another_process_is_writing_stays(code: str, tmp_path: Path):
    with writer(code, tmp_path / "out.safetensors") as (process, other):
        for _ in range(3):
            save_safetensors(tmp_path / "mine.safetensors", {"a": torch.ones(2)})
        assert process.poll() is None
        assert other.exists()
    temporary.sweep(tmp_path)
    assert not other.exists()


def test_what_this_process_is_writing_stays(tmp_path: Path):
    with writing(tmp_path / "a") as first, writing(tmp_path / "b") as second:
        first.write_text("1")
        second.write_text("2")
        temporary.sweep(tmp_path)
        assert first.exists()
        assert second.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_what_is_not_ours_stays(tmp_path: Path):
    names = ("out.tmp", ".out.safetensors.abcdefgh.tmp", ".out.efface-abcdefgh.tmp.old", "x.efface-abcdefgh.tmp")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".file.efface-abcdefgh.tmp").write_text("somebody's")
    (tmp_path / ".link.efface-abcdefgh.tmp").symlink_to(tmp_path / "out.tmp")
    temporary.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_without_locks_it_must_be_a_day_old(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(temporary, "_locked", lambda descriptor, wait=False: None)
    temporary.sweep(tmp_path)
    assert killed.exists()
    old = time.time() - temporary.DAY - 60
    os.utime(killed, (old, old))
    temporary.sweep(tmp_path)
    assert not killed.exists()
    with writing(tmp_path / "a") as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_another_process_took_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lock, taken = temporary._locked, []

    def late(descriptor: int, wait: bool = False) -> bool | None:
        if wait and not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        return lock(descriptor, wait)

    monkeypatch.setattr(temporary, "_locked", late)
    with writing(tmp_path / "a") as path:
        assert path.parent != taken[0]
        path.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_a_long_name_in_any_script_is_written(tmp_path: Path):
    path = tmp_path / ("猫" * 80)  # 240 bytes of 255
    with writing(path) as own:
        own.write_text("whole")
    assert path.read_text() == "whole"
