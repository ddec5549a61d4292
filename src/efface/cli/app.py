"""The program: its commands, and every error as one line with exit code 2."""

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
import typer.core

from efface import __version__
from efface.cli import boundary, commands
from efface.cli.options import Variadic

DEBUG = "--debug"


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
        if hasattr(file, "app"):  # a group; its own `run` takes the sheet of a file
            app.add_typer(file.app, name=name)
        else:
            app.command(name, cls=Variadic)(file.run)
    return app


@cache
def _command(files: tuple[str, ...]) -> Any:
    """Return the program's command, built once a process for the same files in commands/."""
    return typer.main.get_command(program())


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"efface {__version__}")
        raise typer.Exit
    return wanted


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show where an error came from, and what other libraries say.")
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None, other: typer.Typer | None = None, name: str = "efface") -> None:
    """Run one command and exit with 0, or with 2 and one line on standard error.

    other, name: another program and its name, with the same handling of errors.
    """
    boundary.prepare()
    boundary.leave(run(list(sys.argv[1:] if args is None else args), other, name))


def run(args: list[str], other: typer.Typer | None = None, name: str = "efface") -> int:
    """Run one command and return its exit code; prints at most one line when it fails.

    With --debug anywhere among the flags, what went wrong is raised instead.
    """
    flags = args[: args.index("--")] if "--" in args else args
    debug = DEBUG in flags
    rest = [arg for arg in flags if arg != DEBUG] + args[len(flags) :]
    try:
        with boundary.quiet_libraries(debug):
            command = typer.main.get_command(other) if other else _command(tuple(names()))
            with command.make_context(name, rest) as context:  # click's own `main` has its own ends
                command.invoke(context)
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "Exit":
            return error.exit_code  # type: ignore[union-attr]
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())  # type: ignore[union-attr]
            return 2
        if debug and not hasattr(error, "format_message"):
            raise
        line, code = boundary.ending(error)
        if line:
            typer.echo("efface: " + " ".join(line.split()), err=True)
        return code
    return 0
