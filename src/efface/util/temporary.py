"""Temporary files and folders beside what is written. Those of a killed process are removed by the next writer.

A writer holds a lock on what it writes, which the system releases when the process ends, however it ends. So a file
with our name that can be locked has no writer any more. Where files cannot be locked, it must be a day old as well.
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
def beside(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a new, locked file or folder in the folder of `path`; it is removed unless the block has renamed it.

    First removes what killed processes left there. Raises `OSError`.
    """
    sweep(path.parent)
    own, lock = _new(path, folder)
    try:
        yield own
    finally:
        _remove(own)
        if lock is not None:
            os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes in a folder; those being written stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and (
                entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            ):
                _remove_if_left(Path(entry.path))


def _new(path: Path, folder: bool) -> tuple[Path, int | None]:
    """Return a new file or folder and the descriptor that holds its lock, None where it cannot be locked."""
    options = {"prefix": f".{path.name[:40]}.efface-", "suffix": ".tmp", "dir": path.parent}
    while True:
        if folder:
            own = Path(tempfile.mkdtemp(**options))
            lock = _open(own)
        else:
            lock, name = tempfile.mkstemp(**options)
            own = Path(name)
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
        free = lock is not None and _locked(lock)
        if free or (free is None and time.time() - path.stat().st_mtime > DAY):
            _remove(path)
    except OSError:
        return
    finally:
        if lock is not None:
            os.close(lock)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return None


def _locked(descriptor: int, wait: bool = False) -> bool | None:
    """Lock a file; return whether it is locked now, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
