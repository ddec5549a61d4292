import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from efface import registry
from efface.concept import Concept
from efface.errors import BadInput, UnknownName
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD


def test_names_are_the_public_files_of_the_folder():
    names = registry.names("methods")
    assert {"negative", "sld"} <= set(names)
    assert names == sorted(names)
    assert not any(name.startswith("_") for name in names)


def test_an_unknown_kind_or_name_gives_the_nearest_match():
    with pytest.raises(UnknownName, match="did you mean 'methods'"):
        registry.names("method")
    with pytest.raises(UnknownName, match="unknown method 'negativ'; did you mean 'negative'"):
        registry.get("methods", "negativ")
    with pytest.raises(UnknownName):
        registry.summary("methods", "_finetune")


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "fresh.py").write_text('"""A fresh method.\n\nMore."""\n')
    (tmp_path / "methods" / "_shared.py").write_text("")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    assert registry.names("methods") == ["fresh"]
    assert registry.summary("methods", "fresh") == "A fresh method."
    assert registry.names("attacks") == []


def test_listing_imports_neither_torch_nor_the_methods():
    script = """
import sys
import efface.registry as registry
names = registry.names("methods")
assert "negative" in names and registry.summary("methods", "negative").startswith("Negative prompt")
heavy = {"torch", "diffusers", "transformers", "numpy", "efface.methods.negative"} & set(sys.modules)
assert not heavy, heavy
"""
    root = str(Path(registry.__file__).parents[1])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": root})


def test_get_gives_the_class_and_name_of_gives_the_name():
    assert registry.get("methods", "sld") is SLD
    assert registry.name_of(SLD) == "sld"


def test_describe_gives_names_types_defaults_and_help():
    fields = {field.name: field for field in registry.describe(SLD)}
    assert list(fields)[:2] == ["warmup", "scale"]
    assert fields["scale"].type is float
    assert fields["scale"].default == 1000.0
    assert fields["scale"].help == "strength of the safety guidance (s_S); 0 is plain guidance."
    assert "PRESETS" not in fields


def test_help_goes_on_over_deeper_lines_and_comes_from_parents():
    @dataclass(frozen=True)
    class Parent:
        """Do something.

        Args:
            rate: how fast
                it goes
            other: not this
        """

        rate: float = 1.0
        other: int = 0

    @dataclass(frozen=True)
    class Child(Parent):
        """Do it well.

        other: this
        """

        last: str = ""

    helps = {field.name: field.help for field in registry.describe(Child)}
    assert helps == {"rate": "how fast it goes", "other": "this", "last": ""}


def test_build_refuses_unknown_fields_and_wrong_types():
    with pytest.raises(UnknownName, match="unknown field of sld 'scal'; did you mean 'scale'"):
        registry.build(SLD, scal=3)
    with pytest.raises(BadInput, match="warmup should be int"):
        registry.build(SLD, warmup=1.5)
    with pytest.raises(BadInput, match="legacy should be bool"):
        registry.build(SLD, legacy="true")
    assert registry.build(SLD, scale=3).scale == 3.0
    assert registry.make("methods", "negative", prompt="x") == NegativePrompt("x")


@dataclass(frozen=True)
class Worded:
    """Take listed words."""

    one: Literal["tail", "all"] = "tail"
    maybe: Literal["near", "far"] | None = None
    several: tuple[Literal["red", "blue"], ...] = ("red",)
    free: str = "any"

    def __post_init__(self) -> None:
        registry.check_fields(self)


def test_choices_are_checked_at_construction():
    values: dict[str, Any] = {"one": "all", "maybe": "far", "several": ["red", "blue"], "free": "none"}
    assert registry.build(Worded, **values).several == ("red", "blue")
    wrong = [({"one": "tial"}, "unknown value of one 'tial'; did you mean 'tail'? (known: all, tail)")]
    wrong += [({"maybe": "fra"}, "unknown value of maybe 'fra'; did you mean 'far'? (known: far, near)")]
    wrong += [({"several": ("red", "blu")}, "unknown value of several 'blu'; did you mean 'blue'? (known: blue, red)")]
    for given, message in wrong:
        for make in (Worded, partial(registry.build, Worded)):
            with pytest.raises(UnknownName) as error:
                make(**given)
            assert str(error.value) == message


def test_json_round_trip():
    values = {
        "method": SLD(scale=5.0),
        "erase": (Concept("church"), Concept("neon", kind="style")),
        "n": (1, 2.5, None),
    }
    text = json.dumps(registry.to_json(values))
    assert registry.from_json(json.loads(text)) == values


def test_json_names_only_registered_classes():
    with pytest.raises(UnknownName):
        registry.from_json({"kind": "methods", "name": "../../evil", "fields": {}})
    with pytest.raises(UnknownName):
        registry.from_json({"kind": "os", "name": "system", "fields": {}})
    with pytest.raises(UnknownName):
        registry.from_json({"kind": "methods", "name": "sld", "fields": {"run": "rm"}})

    @dataclass
    class Foreign:
        x: int = 0

    with pytest.raises(BadInput, match="Foreign is not a registered class"):
        registry.to_json(Foreign())
    with pytest.raises(BadInput, match="has no JSON form"):
        registry.to_json(object())
