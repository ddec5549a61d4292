"""Bench files: what they mean, and everything that is wrong said at once, with its line."""

from pathlib import Path

import pytest

from efface.errors import BadFile, BadInput
from efface.evaluation.bench.file import Chosen, read
from efface.evaluation.bench.jobs import jobs

GOOD = """
model = "mini"
concepts = ["church", ["cat", "dog"]]
methods = ["uce", "esd:paper", {name = "uce", erase_scale = 0.5}]
attacks = ["inversion"]
seeds = {target = 5, related = 2, method = [0, 1]}
"""
BAD = """model = "mini"
# a comment about chruch
concepts = ["chruch", "castle", "castle"]
methods = [
  "ucee",
  {name = "esd", stepz = 3},
  {name = "esd", lr = -1.0},
]
attacks = ["inversion:minni", 7]
metricks = ["ssim"]
seeds = {target = 0, weird = 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "b.toml"
    path.write_text(text)
    return path


def test_a_bench_is_every_method_on_every_concept_and_every_attack_on_every_edit(tmp_path: Path) -> None:
    bench = read(write(tmp_path, GOOD))
    assert [[c.name for c in one] for one in bench.concepts] == [["church"], ["cat", "dog"]]
    assert bench.methods[0] == Chosen("methods", "uce", "mini")  # mini's own preset, where none is named
    assert bench.methods[1].preset == "paper"
    assert dict(bench.methods[2].fields) == {"erase_scale": 0.5}
    assert bench.plan.target_seeds == (0, 1, 2, 3, 4)
    assert bench.plan.steps == 8  # enough for a judge of mini's images
    planned = jobs(bench, "id")
    assert len(planned) == 12 * 3
    assert [job.what for job in planned[:12]] == ["edit"] * 12
    assert len({job.id for job in planned}) == len(planned)
    assert planned == jobs(read(write(tmp_path, GOOD)), "id")
    assert [job.id for job in planned] == [job.id for job in jobs(bench, "id")]
    assert {job.edit_job.id for job in planned[12:]} == {job.id for job in planned[:12]}
    pair = planned[-1]
    assert pair.attack is not None
    assert "cat" not in {c.name for c in pair.preserve}
    assert pair.label.startswith("inversion:mini on uce:mini erase_scale=0.5 cat+dog")


def test_an_id_depends_on_what_the_result_depends_on(tmp_path: Path) -> None:
    first = {job.id for job in jobs(read(write(tmp_path, GOOD)), "id")}
    amended = GOOD.replace('"esd:paper"', '"esd:paper", "sld"')
    assert first < {job.id for job in jobs(read(write(tmp_path, amended)), "id")}
    assert not first & {job.id for job in jobs(read(write(tmp_path, GOOD)), "other weights")}
    more = jobs(read(write(tmp_path, GOOD.replace("target = 5", "target = 6"))), "id")
    assert {job.what for job in more if job.id not in first} == {"evaluation"}  # its plan is not an attack's
    slower = jobs(read(write(tmp_path, GOOD + "sampling = { steps = 7 }\n")), "id")
    assert {job.what for job in slower if job.id not in first} == {"evaluation", "attack"}


def test_everything_that_is_wrong_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read(write(tmp_path, BAD))
    said = str(caught.value)
    for expected in (
        "10 mistakes", "line 3: unknown concept 'chruch'; did you mean 'church'?", "line 3: named twice: castle",
        "line 5: unknown method 'ucee'; did you mean 'uce'?", "unknown field of esd 'stepz'; did you mean 'steps'?",
        "lr must be above 0", "line 9: unknown preset of inversion 'minni'; did you mean 'mini'?",
        "line 9: one of attacks is a name", "line 10: unknown key 'metricks'; did you mean 'metrics'?",
        "line 11: seeds of target are a number", "line 11: unknown kind of seeds 'weird'",
    ):  # fmt: skip
        assert expected in said, expected
    assert "known:" not in said.partition("castle")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "not valid TOML"),
        ("methods = ['uce']", "concepts is missing"),
        ("concepts = ['church']\nmethods = 'uce'", "methods is a list"),
        ("concepts = [['church', 3]]\nmethods = ['uce']", "a concept is a name"),
        ("concepts = ['church']\nmethods = ['uce']\nseeds = 'many'", "seeds is a number"),
        ("concepts = ['church']\nmethods = ['uce']\nseeds = {method = [-1]}", "whole numbers"),
        ("model = 3\nconcepts = ['church']\nmethods = ['uce']", "model is a text"),
        ("concepts = ['church']\nmethods = ['uce', 'uce']", "named twice: uce"),
        ("concepts = ['church']\nmethods = ['uce']\nmetrics = ['simm']", "did you mean 'ssim'"),
    ],
)
def test_malformed_benches(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(write(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadFile):
        read(tmp_path / "none.toml")
