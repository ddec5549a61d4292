"""The boundary: any exception, signal or closed stream is one line at most, with its exit code."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.cli import app, boundary
from efface.errors import BadEdit, BadInput


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (BadInput("steps is wrong"), "steps is wrong", 2),
        (BadEdit("pass any_base=True"), "pass --any-base=True", 2),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), "No space left on device: x.png", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), f"File name too long: {'a' * 200}", 2),
        (BadInput("a" * 5000), "a" * 900 + "…", 2),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "", 141),
        (MemoryError(), "out of memory: ask for less at once", 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory: ask for less", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: ask for less", 2),
        (RecursionError("maximum recursion depth exceeded"), "an input is nested too deep", 2),
        (RuntimeError("Could not determine home directory."), "this user has no home folder: set EFFACE_HOME", 2),
        (KeyboardInterrupt(), "stopped", 130),
        (boundary.Terminated(), "stopped", 143),
        (ValueError("first\nsecond"), "ValueError: first (unexpected; --debug shows where)", 2),
        (AssertionError(), "AssertionError (unexpected; --debug shows where)", 2),
    ],
)
def test_every_exception_has_a_line_and_a_code(error: BaseException, line: str, code: int):
    ended = boundary.ending(error)
    assert ended.code == code
    assert ended.line.startswith(line) if line else ended.line == ""
    assert "\n" not in ended.line


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `efface list` raise an exception."""

    def set_to(error: BaseException) -> None:
        def fail(what: str) -> Any:
            raise error

        monkeypatch.setattr("efface.cli.listing.registered", fail)

    return set_to


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), MemoryError(), KeyboardInterrupt(), OSError(28, "full", "a")]
)
def test_a_command_ends_in_one_line(broken: Any, error: BaseException, capsys: pytest.CaptureFixture[str]):
    broken(error)
    assert app.run(["list", "methods"]) == boundary.ending(error).code
    assert capsys.readouterr().err == f"efface: {boundary.ending(error).line}\n"


@pytest.mark.parametrize("args", [["--debug", "list", "methods"], ["list", "methods", "--debug"]])
def test_debug_raises_what_went_wrong(broken: Any, args: list[str]):
    broken(ZeroDivisionError("x"))
    with pytest.raises(ZeroDivisionError):
        app.run(args)
    with pytest.raises(BadInput):
        app.run(["--debug", "generate", ""])


def test_debug_after_two_dashes_is_a_word(capsys: pytest.CaptureFixture[str]):
    assert app.run(["list", "--", "--debug"]) == 2
    assert "unknown list '--debug'" in capsys.readouterr().err


def test_other_libraries_are_silent_unless_debugging(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("diffusers")
    level = logger.level
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for debug in (False, True):
            with boundary.quiet_libraries(debug):
                heard = logger.isEnabledFor(logging.ERROR)
                warnings.warn_explicit("dtype", UserWarning, "x.py", 1, module="transformers.models.clip")
            assert heard is debug
    assert len(seen) == 1
    assert logger.level == level


def heard() -> None:
    """Let a child hear Ctrl-C, also where these tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def program(code: str, *, after: float | None = None, number: int = 0, **more: Any) -> tuple[int, str, str]:
    """Run `main` on a command that is replaced by `code`; send a signal `after` it has begun."""
    script = (
        "import sys, time\nfrom efface.cli import app, listing\n"
        f"def work(what):\n    print('begun', flush=True)\n    {code}\n"
        "listing.registered = work\napp.main(['list', 'methods'])\n"
    )
    done = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
        **more,
    )
    begun = ""
    if after is not None:
        assert done.stdout is not None
        begun = done.stdout.readline()
        time.sleep(after)
        done.send_signal(number)
    out, err = done.communicate(timeout=60)
    return done.returncode, begun + out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_in_one_line_and_unwind(number: int, code: int, tmp_path: Path):
    left = tmp_path / "temporary"
    left.touch()
    work = f"\n    try: time.sleep(60)\n    finally: __import__('os').unlink({str(left)!r})"
    assert program(work, after=0.1, number=number) == (code, "begun\n", "efface: stopped\n")
    assert not left.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_program_is_loaded_ends_in_one_line(number: int, code: int):
    strike = f"if name == 'typer': signal.raise_signal({int(number)})"
    strike = f"class Slow:\n    def find_spec(self, name, *_):\n        {strike}"
    script = f"import signal, sys\n{strike}\nsys.meta_path.insert(0, Slow())\nfrom efface.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script, "list"], capture_output=True, text=True, preexec_fn=heard)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "efface: stopped\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_inside_a_destructor_is_not_lost(number: int, code: int):
    """Python drops what a destructor raises; without a second signal the command would go on."""
    strike = f"__import__('signal').raise_signal({int(number)}); list(range(9))"
    work = (
        f"\n    class Struck:\n        def __del__(self): {strike}"
        "\n    Struck()\n    for _ in range(600): time.sleep(0.1)"
    )
    assert program(work) == (code, "begun\n", "efface: stopped\n")


def test_a_reader_that_leaves_is_no_error():
    script = f"{sys.executable} -m efface list methods | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout[1:].strip() in ("0", "141")  # 0 if the pipe held everything


def test_a_full_or_closed_output_is_no_traceback():
    for target, code in ((">&-", 0), ("> /dev/full", 2)):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m efface list methods {target}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (code == 2)
        assert "Traceback" not in done.stderr


def test_a_terminal_without_greek_shows_escapes():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    args = [sys.executable, "-m", "efface", "list", "methods"]
    done = subprocess.run(args, capture_output=True, encoding="latin-1", env=environment, check=True)
    assert "\\u03a3" in done.stdout  # Σ


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def homeless(*_: object) -> Any:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("efface.cli.listing.registered", homeless)
    assert app.run(["list", "methods"]) == 2
    assert capsys.readouterr().err == (
        "efface: this user has no home folder: set EFFACE_HOME to a folder for cached images\n"
    )
