import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.edits.parts import TextMap
from efface.errors import BadEdit, BadFile, WriteError
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.models.model import Model
from efface.query import Query
from efface.util.files import load_safetensors, save_safetensors

QUERIES = [Query("a church", 0, 3), Query("a dog", 1, 3)]


def whole(model: Model) -> Edit:
    """Make an edit with every kind of part."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(model.text_weights())
    left = 0.1 * torch.randn(model.width, 2, generator=generator)
    right = torch.randn(2, model.width, generator=generator)
    guards = (Guard(SLD(scale=5.0), (Concept("church", kind="unsafe"),)), Guard(NegativePrompt("x"), (Concept("y"),)))
    weights = model.weights()
    return Edit(
        delta={"unet.conv_out.bias": 0.1 * torch.randn(4, generator=generator)},
        maps=(TextMap(names, left, right),),
        guards=guards,
        meta={
            "method": "test",
            "erase": [{"name": "church"}],
            "fields": {"x": 1.5},
            "base": model.base(list(weights)[:2]),
        },
        extra={"derived": torch.ones(2, 3, dtype=torch.float64)},
    )


@pytest.fixture
def saved(tiny: Model, tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    whole(tiny).save(path)
    return path


def test_saving_and_loading_gives_the_same_edit_and_images(tiny: Model, saved: Path):
    edit, back = whole(tiny), Edit.load(saved)
    assert back.id == edit.id
    assert back == edit
    assert back.guards == edit.guards
    assert back.meta == {**edit.meta, "format": 1}
    assert torch.equal(back.extra["derived"], edit.extra["derived"])
    assert back.extra["derived"].dtype == torch.float64
    assert back.maps[0].names == edit.maps[0].names
    with edit.applied(tiny) as a, back.applied(tiny) as b:
        assert torch.equal(a.generate(QUERIES), b.generate(QUERIES))


def test_a_guard_made_of_a_text_map_is_saved_too(tiny: Model, tmp_path: Path):
    names = tuple(tiny.text_weights())
    edit = Edit(maps=(TextMap(names, torch.ones(32, 1), torch.ones(1, 32)),)).as_guard()
    edit.save(tmp_path / "guard.safetensors")
    back = Edit.load(tmp_path / "guard.safetensors")
    assert back == edit
    with edit.applied(tiny) as a, back.applied(tiny) as b:
        assert torch.equal(a.generate(QUERIES), b.generate(QUERIES))


def test_the_empty_edit_and_a_guard_alone_are_saved(tmp_path: Path, tiny: Model):
    for edit in (Edit(), NegativePrompt()(tiny, "church")):
        edit.save(tmp_path / "x.safetensors")
        assert Edit.load(tmp_path / "x.safetensors") == edit


def test_the_header_is_json_that_other_programs_can_read(saved: Path):
    _, meta = load_safetensors(saved)
    header = json.loads(meta["efface"])
    assert header["format"] == 1
    assert header["method"] == "test"
    assert header["guards"][0]["method"]["name"] == "sld"


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_edit_is_refused(saved: Path, keep: int):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(BadFile):
        Edit.load(saved)


def test_a_changed_tensor_is_noticed(saved: Path):
    data = bytearray(saved.read_bytes())
    data[-5] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(BadEdit, match="does not match its id"):
        Edit.load(saved)


def test_a_pickle_and_a_missing_file_are_refused(tmp_path: Path):
    (tmp_path / "edit.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(BadFile, match="pickle"):
        Edit.load(tmp_path / "edit.pt")
    with pytest.raises(BadFile, match="does not exist"):
        Edit.load(tmp_path / "none.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path):
    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(BadEdit, match="not an efface edit"):
        Edit.load(tmp_path / "x.safetensors")


def rewrite(path: Path, **changes: object) -> None:
    """Change the header of an edit; None takes a key away."""
    tensors, meta = load_safetensors(path)
    header = {**json.loads(meta["efface"]), **changes}
    header = {key: value for key, value in header.items() if value is not None}
    save_safetensors(path, tensors, {"efface": json.dumps(header)})


def test_a_future_format_is_refused(saved: Path):
    rewrite(saved, format=2)
    with pytest.raises(BadEdit, match="format 2; this version reads 1: update efface"):
        Edit.load(saved)


EVIL = {"method": {"kind": "methods", "name": "../os", "fields": {}}, "erase": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": None},
        {"maps": None},
        {"maps": [["a"], ["b"]]},
        {"maps": 3},
        {"guards": [EVIL]},
        {"guards": [{"method": {"kind": "methods", "name": "sld", "fields": {"run": 1}}, "erase": []}]},
        {"guards": [{"method": {"kind": "methods", "name": "sld", "fields": {"scale": "x"}}, "erase": []}]},
        {"guards": [{"method": 3, "erase": []}]},
        {"guards": [{"method": EVIL["method"]}]},
        {"guards": [{"map": True}]},
        {"guards": 3},
        {"id": "0" * 64},
        {"id": None},
    ],
)
def test_a_damaged_header_is_refused(saved: Path, changes: dict):
    rewrite(saved, **changes)
    with pytest.raises(BadEdit) as caught:
        Edit.load(saved)
    assert "\n" not in str(caught.value)


def test_a_header_that_is_no_json_object_is_refused(saved: Path):
    tensors, _ = load_safetensors(saved)
    for text in ("nonsense", "[]", "3"):
        save_safetensors(saved, tensors, {"efface": text})
        with pytest.raises(BadEdit, match="not a valid edit"):
            Edit.load(saved)


def test_tensors_of_the_wrong_shape_are_refused(saved: Path):
    tensors, meta = load_safetensors(saved)
    for bad in ({"maps.0.left": torch.ones(3)}, {"maps.0.right": torch.ones(5, 32)}):
        changed: dict[str, Tensor] = {**tensors, **bad}
        save_safetensors(saved, changed, meta)
        with pytest.raises(BadEdit):
            Edit.load(saved)


def test_nothing_is_left_when_saving_fails(tiny: Model, tmp_path: Path, monkeypatch):
    path = tmp_path / "edit.safetensors"
    path.write_text("old")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("os.replace", "os.fsync", "safetensors.torch.save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(WriteError, match="No space left"):
                whole(tiny).save(path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match="cannot write"):
        whole(tiny).save(tmp_path / "none" / "edit.safetensors")
