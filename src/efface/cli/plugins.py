"""Commands made from the files of a folder: one subcommand a file, its flags read from the file's class."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from efface import registry
from efface.cli.fields import Sheet, sheet
from efface.cli.options import Variadic
from efface.errors import BadInput, unknown
from efface.registry import Field
from efface.util.ranges import words

Own = Sequence[tuple[str, Any, Any]]  # name of a flag, its annotation, its default
REQUIRED = inspect.Parameter.empty


def group(kind: str, about: str, own: Callable[[Sheet], Own], run: Callable[[Sheet, dict[str, Any]], None]) -> Any:
    """Return an app with a command for each file of a folder, made on demand.

    kind: "methods" or "attacks". own: the flags that a command has besides its class's fields. run: what it does with
    the values of all of them; a field is None when its flag was not given.
    """

    class Group(typer.core.TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return registry.names(kind)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return command(kind, cmd_name, own, run) if cmd_name in registry.names(kind) else None

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if args and not args[0].startswith("-") and args[0] not in registry.names(kind):
                raise unknown(kind.removesuffix("s"), args[0], registry.names(kind))
            return super().resolve_command(ctx, args)

    app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help=about)

    @app.callback()
    def _options() -> None:
        pass

    return app


def command(kind: str, name: str, own: Callable[[Sheet], Own], run: Callable[[Sheet, dict[str, Any]], None]) -> Any:
    """Return the command of one file."""
    described = sheet(kind, name)

    def call(**values: Any) -> None:
        run(described, values)

    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, only, default=default, annotation=of) for name, of, default in own(described)]
    taken = sorted({p.name for p in parameters} & {f.name for f in described.fields})
    if taken:
        flags = ", ".join("--" + field.replace("_", "-") for field in taken)
        of = f"{kind}/{name}.py has a field {', '.join(taken)}"
        raise BadInput(f"{of}, but {flags} is a flag of every command: rename the field")
    parameters += [_parameter(f) for f in described.fields]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = _help(described)
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name, cls=Variadic, no_args_is_help=True)(call)
    return typer.main.get_command(one)


def preset_flag(described: Sheet) -> Any:
    """Return the annotation of --preset, whose help names the presets there are."""
    names = ", ".join(described.presets) or "there are none"
    return Annotated[str, typer.Option("--preset", help=f"Named settings: {names}.", show_default=False)]


def given(described: Sheet, values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that were given on the command line."""
    return {f.name: values[f.name] for f in described.fields if values[f.name] not in (None, [], ())}


def _parameter(f: Field) -> inspect.Parameter:
    """Return the option of a field; None means "not given", so that the preset or the default applies."""
    text = f.help.rstrip(".")
    if f.choices and not all(word in f.help for word in f.choices):
        text += f"; one of {', '.join(f.choices)}"
    shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple | list) else f.default
    notes = [] if shown is None or shown == "" else [f"default: {shown}"]
    notes += [words(f.range)] if f.range else []
    text += f"  [{'; '.join(notes)}]" if notes else ""
    flag = f"{f.flag}/--no-{f.flag[2:]}" if f.type is bool and not f.many else f.flag
    option = typer.Option(flag, help=text, show_default=False)
    kind: Any = (list[f.type] if f.many else f.type) | None  # type: ignore[valid-type]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _help(described: Sheet) -> str:
    lines = [described.summary or described.source]
    if described.source and described.source != described.summary:
        lines.append(described.source)
    for name, values in described.presets.items():
        settings = ", ".join(f"{key} {_brief(value)}" for key, value in values.items()) or "the defaults"
        lines.append(f"\b\nPreset {name}: {settings}")
    return "\n\n".join(lines)


def _brief(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 3:
        return f"({len(value)} texts)"
    return repr(value) if value == "" else str(value)
