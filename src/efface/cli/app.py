"""Put the commands together, and turn every expected error into one line and exit code 2."""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from efface import __version__
from efface.cli import edits, images, listing, measure
from efface.cli.erase import EraseGroup
from efface.cli.options import Variadic
from efface.cli.purify import purify
from efface.errors import EffaceError, unknown

ORDER = ("erase", "generate", "compare", "evaluate", "purify", "combine", "export", "list", "demo")


class Ordered(typer.core.TyperGroup):
    """List the commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else 99)


app = typer.Typer(
    name="efface",
    cls=Ordered,
    help="Erase concepts from text-to-image diffusion models, and measure how well it worked.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
erase = typer.Typer(
    cls=EraseGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Erase concepts from a model by a method; writes an edit, one small .safetensors file.",
)
app.add_typer(erase, name="erase")
app.command(cls=Variadic)(images.generate)
app.command(cls=Variadic)(images.compare)
app.command(cls=Variadic)(measure.evaluate)
app.command(cls=Variadic)(purify)
app.command()(edits.combine)
app.command()(edits.export)
app.command("list")(listing.show)
app.command()(measure.demo)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"efface {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@erase.callback()
def _erase() -> None:
    pass


def main(args: Sequence[str] | None = None, commands: typer.Typer = app, name: str = "efface") -> None:
    """Run one of some commands and leave the process with 0, or 2 and one line on standard error."""
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub)\b")  # not the user's to mend
    sys.exit(run(list(sys.argv[1:] if args is None else args), commands, name))


def run(args: list[str], commands: typer.Typer = app, name: str = "efface") -> int:
    """Run one of some commands and return its exit code; prints at most one line when it fails."""
    command = typer.main.get_command(commands)
    try:
        result = command.main(args, prog_name=name, standalone_mode=False)
    except EffaceError as error:
        return _fail(str(error).replace("any_base", "--any-base"))  # the flag's name for the argument
    except OSError as error:  # a disk that filled up, a file that went away
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except typer.Abort:
        return _fail("stopped", 130)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except Exception as error:  # click's usage errors, wherever typer keeps its click
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())  # type: ignore[attr-defined]
            return 2
        return _fail(_usage(error))
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> str:
    """Say what was wrong with the command line, and which command's help tells more."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "efface"
    if type(error).__name__ == "NoSuchOption" and context is not None:
        flags = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        return f"{unknown(f'flag of {path}', error.option_name, flags)}"
    return f"{error.format_message().rstrip('.')} (see {path} --help)"


def _fail(message: str, code: int = 2) -> int:
    typer.echo("efface: " + " ".join(message.split()), err=True)
    return code
