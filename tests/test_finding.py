"""Findings as files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadFile, BadInput
from efface.finding import Finding
from efface.query import Query

ONE = Finding(
    (
        Query("a church", 3, 5, 2.0, Context(torch.randn(1, 4, 8), torch.randn(1, 6))),
        Query("a church", 4, 5, latents=torch.randn(1, 4, 8, 8), start=2, solver="ddim"),
    ),
    (0.5, -1.0),
    Edit(delta={"unet.x": torch.ones(2, 2)}, meta={"method": "relearned"}),
    (True, False),
    {"calls": 3},
    {"loss": [1.0, 2.0]},
    {"vectors": torch.randn(2, 3)},
    {"attack": "x", "concept": {"name": "church"}, "queries": [["a church", 3], ["a church", 4]]},
    (1, 0),
)


def test_round_trip(tmp_path) -> None:
    path = tmp_path / "f.safetensors"
    ONE.save(path)
    read = Finding.load(path)
    assert read.queries == ONE.queries
    assert read.queries[1].start == 2
    assert (read.scores, read.success, read.about, read.cost) == (ONE.scores, ONE.success, ONE.about, ONE.cost)
    assert read.edit == ONE.edit
    assert read.given == ONE.given
    assert read.edit is not None
    assert read.edit.meta["method"] == "relearned"
    assert torch.equal(read.tensors["vectors"], ONE.tensors["vectors"])
    assert read.meta["attack"] == "x"
    assert read.concept.name == "church"
    assert read.id == ONE.id
    Finding().save(path)
    assert Finding.load(path).queries == ()


def change(path, name: str, value: object, within: str = "") -> None:
    with safe_open(path, "pt") as file:
        meta = dict(file.metadata())
    header = json.loads(meta["efface-finding"])
    (header[within] if within else header)[name] = value
    tensors = load_file(path)
    save_file(tensors, path, {"efface-finding": json.dumps(header)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 2, "format 2"),
        ("queries", [{"prompt": 3}], "is not a finding"),
        ("queries", 5, "is not a finding"),
        ("scores", ["a", "b"], "no numbers"),
        ("scores", [1.0], "1 scores"),
        ("success", [1, 0], "truth values"),
        ("cost", {"calls": "many"}, "malformed"),
        ("about", [], "malformed"),
        ("meta", {"concept": {"name": 4}}, "is not a finding"),
        ("meta", {"queries": [["a church", 3]]}, "was not given"),
        ("meta", {"queries": 7}, "is not a finding"),
        ("given", [0], "found for"),
        ("given", [0, -1], "found for"),
        ("edit", {}, "is not a finding"),
        ("id", "0", "damaged"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, value, message) -> None:
    path = tmp_path / "f.safetensors"
    ONE.save(path)
    change(path, name, value)
    with pytest.raises(BadFile, match=message):
        Finding.load(path)


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "e.safetensors"
    Edit(delta={"unet.x": torch.ones(2)}).save(path)
    with pytest.raises(BadFile, match="it is an edit"):
        Finding.load(path)
    ONE.save(path)
    tensors = load_file(path)
    tensors["queries.0.tokens"][0, 0, 0] = float("nan")
    with safe_open(path, "pt") as file:
        meta = dict(file.metadata())
    save_file(tensors, path, meta)
    with pytest.raises(BadFile, match="not finite"):
        Finding.load(path)
    with pytest.raises(BadInput, match="which concept"):
        _ = Finding().concept


def test_queries_that_start_from_latents() -> None:
    plain = Query("a church", 3)
    assert "latents" not in plain.key
    late = Query("a church", 3, latents=torch.zeros(1, 4, 8, 8), start=2)
    assert late != plain
    assert late != Query("a church", 3, latents=torch.ones(1, 4, 8, 8), start=2)
    with pytest.raises(BadInput, match="needs latents"):
        Query("a church", start=2)
    with pytest.raises(BadInput, match="a step from 0 to 19"):
        Query("a church", start=20, latents=torch.zeros(1, 4, 8, 8))


def test_generation_from_latents_is_the_rest_of_a_trajectory(tiny) -> None:
    query = Query("a church", 3, steps=4, solver="ddim")
    middle = tiny.sample([query], stop=2)
    late = Query("a church", 99, steps=4, solver="ddim", latents=middle, start=2)
    whole = tiny.generate([query, Query("a dog", 1, steps=4, solver="ddim"), late])
    torch.testing.assert_close(whole[0], whole[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(tiny.sample([late]), tiny.sample([query]), atol=1e-5, rtol=0)
    with pytest.raises(BadInput, match="same step"):
        tiny.sample([query, late])
    with pytest.raises(BadInput, match="reads"):
        tiny.generate([Query("a church", latents=torch.zeros(1, 4, 4, 4))])
