"""The one place where an exception becomes a line: whatever a command raises, its message and its exit code.

Exit codes: 2 for anything that went wrong, 130 after SIGINT, 143 after SIGTERM, 141 when the reader of the output left.
"""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

from efface.errors import EffaceError, unknown

LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "accelerate", "torch", "PIL", "urllib3", "httpx")
VERBOSITY = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY")  # read when each is imported
NUMBERS = {"int": "a whole number", "float": "a number"}  # kinds of pydantic's errors, which typer passes on
LONGEST = 900  # characters of a line
FULL = ("not enough memory", "can't allocate memory", "out of memory", "Unable to allocate")


class Ending(NamedTuple):
    """How a command ended: the line on standard error ("" for none), and the exit code."""

    line: str
    code: int


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds like SIGINT, so that temporary files are removed."""


def ending(error: BaseException) -> Ending:
    """Return the line and the exit code for what a command raised."""
    if isinstance(error, EffaceError):
        said = str(error).replace("any_base", "--any-base")  # the flag instead of the argument
        return Ending(said if len(said) <= LONGEST else f"{said[:LONGEST]}…", 2)
    if isinstance(error, Terminated):
        return Ending("stopped", 143)
    if isinstance(error, KeyboardInterrupt):
        return Ending("stopped", 130)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return Ending("", 141)
    if isinstance(error, OSError) and error.errno is not None:  # a full disk, a removed file, a name that is too long
        named = f": {str(error.filename)[:200]}" if error.filename else ""
        return Ending(f"{error.strerror or error}{named}", 2)
    if isinstance(error, MemoryError) or any(words in str(error) for words in FULL):
        return Ending("out of memory: ask for less at once (--batch, --image-batch, fewer images), or use --stream", 2)
    if isinstance(error, RecursionError):
        return Ending("an input is nested too deep to be read", 2)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # neither $HOME nor an entry in passwd
        return Ending("this user has no home folder: set EFFACE_HOME to a folder for cached images", 2)
    if hasattr(error, "format_message"):  # click's usage errors
        return Ending(_usage(error), 2)
    lines = str(error).strip().splitlines() or [""]
    said = f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__
    return Ending(f"{said} (unexpected; --debug shows where)", 2)


def _usage(error: Any) -> str:
    """Return what was wrong with the command line, and the command with more help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "efface"
    if type(error).__name__ == "NoSuchOption" and context is not None:
        flags = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        return f"{unknown(f'flag of {path}', error.option_name, flags)}"
    said = _wrong_type(error) or error.format_message().rstrip(".")
    if type(error).__name__ == "MissingParameter" and (took := getattr(context, "obj", None)):
        said += f": {took} takes all values up to the next flag, so name them before it"
    return f"{said if len(said) <= 400 else said[:400] + '…'} (see {path} --help)"


def _wrong_type(error: Any) -> str:
    """Return what was given where a number belongs, "" for another error."""
    problems = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []
    kind = next((word for key, word in NUMBERS.items() if problems and problems[0]["type"].startswith(key)), "")
    return f"{error.param.opts[0]} {str(problems[0]['input'])[:80]!r}: {kind}" if kind else ""


@contextmanager
def quiet_libraries(debug: bool = False) -> Iterator[None]:
    """Silence what other libraries write beside the one line: warnings and logs. With debug they are shown."""
    if debug:
        yield
        return
    for name in VERBOSITY:
        os.environ.setdefault(name, "critical")
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        for name in LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{name}\b")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def prepare() -> None:
    """Turn SIGTERM into an exception, and let output hold any text, whatever the terminal can show."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "setitimer"):
        sys.unraisablehook = _strike_again(sys.unraisablehook)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            with suppress(OSError):  # a descriptor that another program replaced
                stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def _strike_again(others: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a hook that repeats a signal which struck inside a destructor, where Python drops the exception.

    others: the hook for everything else.
    """

    def hook(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            others(dropped)
            return
        number = signal.SIGTERM if isinstance(dropped.exc_value, Terminated) else signal.SIGINT
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # when the destructor is over

    return hook


def leave(code: int) -> NoReturn:
    """Flush the output and exit; further signals no longer matter, and a reader that left is no error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's own flush is silent
        ended = ending(error)
        code = code or ended.code
        if ended.line:
            print(f"efface: {ended.line}: standard output", file=sys.stderr)
    sys.exit(code)
