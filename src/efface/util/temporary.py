"""Temporary folders beside what is written. Those of a killed process are removed by the next writer.

A writer holds a lock on its folder, which the system releases when the process ends, however it ends. So a folder with
our name that can be locked has no writer any more. Where folders cannot be locked, it must be a day old as well. A
folder holds whatever other libraries put beside a file while they write it: safetensors writes a file of its own first.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = re.compile(r"\..*\.efface-[a-z0-9_]{8}\.tmp", re.DOTALL)
DAY = 24 * 3600.0  # seconds


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder in the folder of `path`, in which to write it; it is removed with what is left in it.

    First removes what killed processes left there. Raises `OSError`.
    """
    sweep(path.parent)
    own, lock = _new(path)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the temporary folders of killed processes in a folder; those in use stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_left(Path(entry.path))


def _new(path: Path) -> tuple[Path, int | None]:
    """Return a new folder and the descriptor that holds its lock, None where it cannot be locked."""
    while True:
        own = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.efface-", suffix=".tmp", dir=path.parent))
        lock = _open(own)
        if lock is not None and not _locked(lock, wait=True):
            os.close(lock)
            return own, None
        if own.exists():  # else another process removed it before it was locked
            return own, lock
        if lock is not None:
            os.close(lock)


def _remove_if_left(path: Path) -> None:
    lock = _open(path)
    try:
        free = None if lock is None else _locked(lock)
        if free or (free is None and time.time() - path.stat().st_mtime > DAY):
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return
    finally:
        if lock is not None:
            os.close(lock)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _locked(descriptor: int, wait: bool = False) -> bool | None:
    """Lock a folder; return whether it is locked now, None where folders cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
