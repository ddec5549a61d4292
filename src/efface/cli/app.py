"""The program: its commands, and every expected error as one line with exit code 2."""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
import typer.core

from efface import __version__
from efface.cli import commands
from efface.cli.options import Variadic
from efface.errors import EffaceError, unknown


def names() -> list[str]:
    """Return the names of all commands in the order of the help."""
    found = [module.name for module in iter_modules(commands.__path__) if not module.name.startswith("_")]
    return sorted(found, key=lambda name: (_file(name).ORDER, name))


def _file(name: str) -> Any:
    return import_module(f"{commands.__name__}.{name}")


class Ordered(typer.core.TyperGroup):
    """List the commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return names()


def program() -> typer.Typer:
    """Return the program with a command for each file in commands/."""
    app = typer.Typer(
        name="efface",
        cls=Ordered,
        help="Erase concepts from text-to-image diffusion models, and measure how well it worked.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_options)
    for name in names():
        file = _file(name)
        if hasattr(file, "app"):
            app.add_typer(file.app, name=name)
        else:
            app.command(name, cls=Variadic)(file.run)
    return app


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"efface {__version__}")
        raise typer.Exit
    return wanted


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Fallback(logging.Filter):
    """Drop the warning of transformers that torchvision is missing, which efface does not need."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "ImageProcessor` requires torchvision (not installed); falling back" not in record.getMessage()


def quiet_libraries() -> None:
    """Silence warnings of other libraries that users cannot act on."""
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub)\b")
    logging.getLogger("transformers.utils.import_utils").addFilter(Fallback())


def main(args: Sequence[str] | None = None, other: typer.Typer | None = None, name: str = "efface") -> None:
    """Run one command and exit with 0, or with 2 and one line on standard error.

    other, name: another program and its name, with the same handling of errors.
    """
    quiet_libraries()
    sys.exit(run(list(sys.argv[1:] if args is None else args), other, name))


def run(args: list[str], other: typer.Typer | None = None, name: str = "efface") -> int:
    """Run one command and return its exit code; prints at most one line when it fails."""
    command = typer.main.get_command(other or program())
    try:
        result = command.main(args, prog_name=name, standalone_mode=False)
    except EffaceError as error:
        return _fail(str(error).replace("any_base", "--any-base"))  # the flag instead of the argument
    except OSError as error:  # a full disk, a removed file
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except typer.Abort:
        return _fail("stopped", 130)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except Exception as error:  # click's usage errors; typer may have its own copy of click
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())  # type: ignore[attr-defined]
            return 2
        return _fail(_usage(error))
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> str:
    """Return what was wrong with the command line, and the command with more help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "efface"
    if type(error).__name__ == "NoSuchOption" and context is not None:
        flags = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        return f"{unknown(f'flag of {path}', error.option_name, flags)}"
    return f"{error.format_message().rstrip('.')} (see {path} --help)"


def _fail(message: str, code: int = 2) -> int:
    typer.echo("efface: " + " ".join(message.split()), err=True)
    return code
