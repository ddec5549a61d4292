from pathlib import Path

import pytest

import efface
from efface.errors import UnknownName
from efface.models.model import Model


def test_load_and_erase_are_enough(folder: Path, tmp_path: Path):
    model = efface.load(folder)
    edit = efface.erase(model, "church", method="negative", preserve=["house"], prompt="a church")
    assert edit.meta["fields"] == {"prompt": "a church"}
    assert edit.meta["preserve"] == [{"name": "house"}]
    edit.save(tmp_path / "edit.safetensors")
    assert efface.Edit.load(tmp_path / "edit.safetensors") == edit


def test_presets_fields_and_several_concepts(tiny: Model):
    edit = efface.erase(tiny, ["church", efface.Concept("dog")], "sld", preset="strong", scale=3, seed=4)
    assert edit.meta["fields"]["scale"] == 3.0
    assert edit.meta["fields"]["beta"] == 0.7
    assert edit.meta["seed"] == 4
    assert edit.meta["preset"] == ""


def test_names_that_do_not_exist_give_the_nearest_match(tiny: Model):
    with pytest.raises(UnknownName, match="unknown method 'negatve'; did you mean 'negative'"):
        efface.erase(tiny, "church", method="negatve")
    with pytest.raises(UnknownName, match="unknown field of sld 'sclae'; did you mean 'scale'"):
        efface.erase(tiny, "church", method="sld", sclae=3)
    with pytest.raises(UnknownName, match="unknown preset of sld 'stong'"):
        efface.erase(tiny, "church", method="sld", preset="stong")


def test_concepts_are_looked_up_in_the_models_table(tmp_path: Path, folder: Path):
    import shutil

    own = tmp_path / "model"
    shutil.copytree(folder, own)
    (own / "concepts.json").write_text('{"objects": [{"name": "church", "anchor": "house"}], "styles": []}')
    model = efface.load(own)
    assert efface.erase(model, "church", method="negative").meta["erase"] == [{"name": "church", "anchor": "house"}]
    with pytest.raises(UnknownName, match="unknown concept 'curch'; did you mean 'church'"):
        efface.erase(model, "curch", method="negative")
    efface.erase(model, efface.Concept("curch"), method="negative")
