"""The fields read from source are those that exist at run time, for every method found."""

import dataclasses
from typing import Any

import pytest

from efface import registry
from efface.cli import plugins
from efface.cli.commands import attack, erase
from efface.cli.fields import check_preset, check_values, sheet
from efface.errors import BadInput, UnknownName
from efface.util.ranges import words

METHODS = registry.names("methods")
REGISTERED = [(kind, name) for kind in ("methods", "attacks") for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_source_and_class_agree(kind: str, name: str) -> None:
    cls: Any = registry.get(kind, name)
    read = sheet(kind, name)
    assert [f.name for f in read.fields] == [f.name for f in dataclasses.fields(cls) if f.init]
    assert read.fields == registry.describe(cls)
    assert read.presets == cls.PRESETS


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_an_unknown_choice_is_refused_at_construction(kind: str, name: str) -> None:
    """Every class checks the choices of its fields, also those with checks of their own."""
    cls: Any = registry.get(kind, name)
    for field in registry.describe(cls):
        if field.choices:
            made = cls()
            object.__setattr__(made, field.name, "no word")  # past the type check of the tests
            with pytest.raises(UnknownName, match=f"unknown value of {field.name} 'no word'"):
                made.__post_init__()


COMMANDS = {"methods": erase, "attacks": attack}


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_every_field_has_help_and_none_hides_a_flag(kind: str, name: str) -> None:
    described = sheet(kind, name)
    own = {flag for flag, _, _ in COMMANDS[kind].flags(described)}
    for field in described.fields:
        assert field.help, f"{name}.{field.name} has no line in the class docstring"
        assert field.name not in own, f"{name}.{field.name} has the name of a flag of its command"


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_given_values_build_the_class(kind: str, name: str) -> None:
    cls: Any = registry.get(kind, name)
    defaults = {f.name: f.default for f in sheet(kind, name).fields if f.default is not None}
    assert cls.preset("", **defaults) == cls.preset("")


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_command_is_made(kind: str, name: str) -> None:
    file = COMMANDS[kind]
    made = plugins.command(kind, name, file.flags, file.run)
    found: dict[str, Any] = {option: p for p in made.params for option in p.opts}
    for field in sheet(kind, name).fields:
        assert field.flag in found
        assert not field.range or words(field.range) in found[field.flag].help


def test_bases_and_types_are_followed() -> None:
    fields = {f.name: f for f in sheet("methods", "esd").fields}
    assert fields["lr"].type is float
    assert fields["steps"].type is int
    assert fields["around"].choices == ("null", "concept", "anchor")


def test_wrong_preset_and_choice() -> None:
    esd = sheet("methods", "esd")
    with pytest.raises(UnknownName, match="mini"):
        check_preset(esd, "minni")
    with pytest.raises(BadInput, match="no presets"):
        check_preset(sheet("methods", "negative"), "paper")
    with pytest.raises(UnknownName, match="concept"):
        check_values(esd, {"around": "concpt"})
