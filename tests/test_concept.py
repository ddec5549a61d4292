import json
from pathlib import Path

import pytest

from efface import concept as concepts
from efface.concept import Concept, table, table_path
from efface.errors import BadFile, BadInput, UnknownName

TABLE = {
    "objects": [
        {
            "name": "church",
            "kind": "object",
            "family": "building",
            "related": ["house", "castle"],
            "keywords": ["religion building"],
            "held_out_keywords": ["cross"],
            "anchor": "house",
            "label": 3,
        }
    ],
    "styles": [{"name": "neon", "kind": "style"}],
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "concepts.json").write_text(json.dumps(TABLE))
    return str(tmp_path)


def test_of_makes_a_concept_from_a_name_and_leaves_a_concept_as_it_is():
    church = Concept("church", anchor="house")
    assert Concept.of(church) is church
    assert Concept.of("church") == Concept("church")


def test_texts_are_its_own_prompts_or_the_default_of_its_kind():
    assert Concept("church").texts == ("a picture of a church",)
    assert Concept("neon", kind="style").texts == ("art in the style of neon",)
    assert Concept("church", prompts=("a church", "churches")).texts == ("a church", "churches")


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_an_empty_name_is_refused(name: str):
    with pytest.raises(BadInput, match="needs a name"):
        Concept(name)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'style'"):
        Concept.from_json({"name": "neon", "kind": "styl"})


@pytest.mark.parametrize(
    "concept",
    [Concept("church"), Concept("neon", ("art by neon",), "art", "style", "modern", ("sketch", "pixel"), ("light",))],
)
def test_json_round_trip(concept: Concept):
    assert Concept.from_json(json.loads(json.dumps(concept.to_json()))) == concept


def test_json_holds_only_what_differs_from_the_default():
    assert Concept("church").to_json() == {"name": "church"}


@pytest.mark.parametrize(
    "value", [{"prompts": []}, {"name": 3}, {"name": "x", "prompts": "y"}, {"name": "x", "anchor": 3}]
)
def test_json_without_a_name_is_refused(value: dict):
    with pytest.raises(BadInput):
        Concept.from_json(value)


def test_json_with_a_foreign_field_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'anchor'"):
        Concept.from_json({"name": "church", "anchr": "x"})


def test_the_table_of_a_model_folder(model: str):
    table = concepts.table(model)
    assert list(table) == ["church", "neon"]
    assert table["church"].related == ("house", "castle")
    assert table["church"].anchor == "house"
    assert table["neon"].kind == "style"


def test_a_model_without_a_table_has_none(tmp_path: Path):
    assert concepts.table(str(tmp_path)) == {}
    assert concepts.find("anything", str(tmp_path)) == Concept("anything")


def test_find_looks_into_the_table(model: str):
    assert concepts.find("church", model).family == "building"
    with pytest.raises(UnknownName, match="did you mean 'church'"):
        concepts.find("curch", model)


@pytest.mark.parametrize("text", ["not json", "[]", '{"objects": [3]}', '{"objects": [{"kind": "object"}]}'])
def test_a_damaged_table_is_refused(tmp_path: Path, text: str):
    (tmp_path / "concepts.json").write_text(text)
    with pytest.raises((BadFile, BadInput)):
        concepts.table(str(tmp_path))


def test_the_embedded_models_table_is_in_the_package():
    assert concepts.table_path("mini") == Path(concepts.__file__).parent / "mini" / "concepts.json"


def test_the_table_of_a_single_file_is_beside_it(tmp_path):
    (tmp_path / "sd14.safetensors").touch()
    assert table_path(str(tmp_path / "sd14.safetensors")) == tmp_path / "sd14.concepts.json"
    assert table_path(str(tmp_path)) == tmp_path / "concepts.json"
    (tmp_path / "sd14.concepts.json").write_text('{"objects": [{"name": "church"}]}')
    assert list(table(str(tmp_path / "sd14.safetensors"))) == ["church"]
