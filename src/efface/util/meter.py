"""Meter: what a piece of work costs this process: wall seconds, processor seconds, memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COST = ("seconds", "cpu_seconds", "loaded_mb", "peak_mb")  # what `Meter.read` returns
_open: list["Meter"] = []  # those that run, the outermost first


class Meter:
    """Hold the cost of the work since it was made, up to its end.

    Linux alone says how much memory the work took at most; elsewhere the memory is left out.
    """

    def __init__(self) -> None:
        self._wall, self._busy = time.perf_counter(), time.process_time()
        self._loaded = _memory("VmRSS")
        self._peak = 0.0
        self._ended: dict[str, float] | None = None

    def read(self) -> dict[str, float]:
        """Return seconds, cpu_seconds and, in MB, loaded_mb (held when it began) and peak_mb (held at most)."""
        if self._ended is not None:
            return self._ended
        cost = {
            "seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(time.process_time() - self._busy, 3),
        }
        peak = max(self._peak, _memory("VmHWM"))
        return cost | ({"loaded_mb": round(self._loaded, 1), "peak_mb": round(peak, 1)} if peak else {})

    def end(self) -> None:
        """Read for the last time."""
        self._ended = self.read()


@contextmanager
def metered() -> Iterator[Meter]:
    """Measure the work inside; may be nested, and one thread at a time."""
    for outer in _open:  # the system forgets the highest mark, so they remember it
        outer._peak = max(outer._peak, _memory("VmHWM"))
    _forget()
    meter = Meter()
    _open.append(meter)
    try:
        yield meter
    finally:
        _open.remove(meter)
        meter.end()


def _memory(name: str) -> float:
    """Return a mark of this process in MB: VmRSS is held now, VmHWM at most; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def _forget() -> None:
    with suppress(OSError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


__all__ = ["COST", "Meter", "metered"]
