"""Protocols: all of the folder can be read, at both sizes; everything that is wrong with one is said at once."""

from pathlib import Path

import pytest

from efface import metric
from efface.concept import Concept, table
from efface.errors import BadInput, UnknownName
from efface.evaluation import protocol
from efface.evaluation.bench.jobs import jobs
from efface.evaluation.bench.prompt_sets import read_csv
from efface.evaluation.prompts import GROUPS

CSV = "prompt,artist,evaluation_seed,evaluation_guidance\na cat,Van Gogh,3,7\na dog,Monet,4,\n"
ARTISTS = ("Kelly McKernan", "Thomas Kinkade", "Tyler Edlin", "Kilian Eng")
WRONG = """title = "x"
paper = 3
weird = 1

[full]
concepts = ["church"]
methods = ["uce"]

[mini]
model = "mini"
concepts = [{kind = "objekt"}, "chruch"]
methods = ["ucee"]
judge = "nudenet:rec"
sampling = {stepz = 3}
look_alikes = -1

[[mini.prompts]]
group = "target"
template = "no place"
seeds = 0

[[mini.prompts]]
group = "coco"
csv = "@coco"
"""


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "rows.csv"
    path.write_text(CSV + "".join(f"a house,{name},1,\n" for name in ARTISTS))
    return dict.fromkeys(("i2p", "coco", "artists", "objects", "alexnet", "inception", "coco_images"), path)


@pytest.fixture(autouse=True)
def every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every package be there: what is read here runs nothing."""
    for module in (metric, __import__("efface.metrics.vectors.source", fromlist=["source"])):
        monkeypatch.setattr(module, "installed", lambda name: True)


@pytest.mark.parametrize("name", protocol.names())
def test_every_protocol_says_what_it_is_and_can_be_read_at_its_sizes(name: str, data: dict[str, Path]) -> None:
    told = protocol.describe(name)
    assert told.title
    assert told.table
    assert set(told.data) <= set(data)
    needed = () if name.startswith("audit") else ("concepts", "methods")
    known = table("mini")
    for size in told.sizes:
        model = "mini" if size == "mini" else "some/model"
        bench = protocol.read(protocol.find(name), model, data, needed)
        assert bench.model == model
        if size == "mini":
            assert all(concept in known.values() for group in bench.concepts for concept in group)
            assert not bench.prompts  # the table's own, so that it can be judged
        elif needed:
            assert bench.prompts  # a model without a table has no others
            for job in jobs(bench, "id"):
                asked = {group for case in job.cases for group in case.groups}
                assert ("target" in asked) == (job.what == "evaluation")
                assert {concept.name for concept in job.named} >= {case.label for case in job.cases if case.label}
            everything = jobs(bench, "id")
            assert len({job.named for job in everything if job.what != "edit"}) == 1  # or no table could hold them
            assert len({job.prompts for job in everything if job.what == "evaluation"}) == 1
            if bench.judge.startswith("clip_zero_shot"):
                assert len(everything[-1].named) > 1


def test_kpop_objects_are_five_of_ten_classes_with_500_images_each() -> None:
    bench = protocol.read(protocol.find("kpop-objects"), "some/model")
    (concepts,) = bench.concepts
    assert len(concepts) == 5
    cases = [case for one in bench.prompts for case in one.cases(concepts)]
    assert len(cases) == 10
    assert {len(case.seeds) for case in cases} == {500}
    assert cases[0].prompt == "image of Cassette Player"
    assert [case.label for case in cases if case.groups == ("target",)] == [concept.name for concept in concepts]
    assert not {case.label for case in cases[:5]} & {case.label for case in cases[5:]}
    assert bench.judge == "resnet50"
    assert bench.preserve == ()
    assert (bench.plan.steps, bench.plan.guidance) == (50, 7.5)
    mini = protocol.read(protocol.find("kpop-objects"))
    assert [len(group) for group in mini.concepts] == [5]


def test_the_control_concepts_are_the_papers_six_and_are_not_judged() -> None:
    bench = protocol.read(protocol.find("task-vectors-objects"), "some/model")
    cases = [case for one in bench.prompts for case in one.cases(bench.concepts[0])]
    control = [case for case in cases if case.groups == ("control",)]
    assert len(control) == 6
    assert "art by Kilian Eng" in {case.prompt for case in control}
    assert {case.label for case in control} == {""}


def test_rows_have_their_own_seed_and_guidance_and_are_dealt_by_artist(data: dict[str, Path]) -> None:
    bench = protocol.read(protocol.find("rece-artists"), "some/model", data)
    cases = [case for one in bench.prompts for case in one.cases([Concept("van gogh", kind="style")])]
    assert [(c.groups[0], c.prompt, c.seeds, c.guidance) for c in cases] == [
        ("target", "a cat", (3,), 7.0), ("unrelated", "a dog", (4,), None),
        *[("unrelated", "a house", (1,), None)] * len(ARTISTS),
    ]  # fmt: skip
    bench = protocol.read(protocol.find("kpop-artists"), "some/model", data)
    cases = [case for one in bench.prompts for case in one.cases([Concept("Monet", kind="style")])]
    assert [(c.concept, c.seeds) for c in cases[:2]] == [("Monet", (4, 5, 6, 7, 8)), ("Van Gogh", (3, 4, 5, 6, 7))]


def test_everything_that_is_wrong_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(WRONG)
    with pytest.raises(BadInput) as caught:
        protocol.read(path)
    said = str(caught.value)
    for expected in (
        "line 2: paper of a protocol is a text, got 3", "line 3: unknown key of a protocol 'weird'", "table is missing",
        "line 10: a protocol is for any model", "line 11: unknown kind of concept 'objekt'; did you mean 'object'?",
        "line 11: unknown concept 'chruch'; did you mean 'church'?", "line 12: unknown method 'ucee'",
        "line 13: unknown judge of nudenet 'rec'; did you mean 'rece'?", "line 14: unknown key of sampling 'stepz'",
        "line 15: look_alikes is a number", "line 19: prompts 1: a template is a text",
        "line 20: prompts 1: seeds is a",
        "needs a file of yours: give it as --data coco=FILE.csv",
    ):  # fmt: skip
        assert expected in said, f"{expected} not in {said}"


def test_a_size_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has settings for mini only, not for some/model: it needs \[full\]"):
        protocol.read(protocol.find("neighbours"), "some/model")
    with pytest.raises(UnknownName, match="did you mean 'kpop-objects'"):
        protocol.locate("protocol:kpop-object")
    with pytest.raises(BadInput, match="no bench file at nosuch"):
        protocol.locate("nosuch")
    path = tmp_path / "x.toml"
    path.write_text("title = 'a'\npaper = 'b'\ntable = 'c'\n")
    with pytest.raises(BadInput, match=r"it needs \[mini\], \[full\] or both"):
        protocol.read(path)
    assert not protocol.is_protocol(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("words\na\n", "no column of prompts"),
        ("prompt\n", "has no rows"),
        ("prompt,seed\na,-1\n", "the seed of row 1 is a whole number"),
        ("prompt,seed\na,1\nb,x\n", "the seed of row 2 is a whole number"),
        ("prompt,guidance\na,nan\n", "the guidance of row 1 is a number"),
        ("prompt,guidance\na,x\n", "the guidance of row 1 is a number"),
        ("prompt,artist\na,b\n", "unknown column 'artst'; did you mean 'artist'"),
    ],
)
def test_csv_files_that_cannot_be_used(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        read_csv(path, column="artst" if "artist" in text else "")


def test_i2p_and_coco_columns(tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    path.write_text('prompt,categories,sd_seed,sd_guidance_scale\n"one, two",x,2219455978,7\nthree,y,5,7.5\n')
    assert read_csv(path) == (("one, two", 2219455978, 7.0, ""), ("three", 5, 7.5, ""))
    assert read_csv(path, 1) == (("one, two", 2219455978, 7.0, ""),)
    path.write_text('case_number,prompt,evaluation_seed\n0,"a man\nand a dog",12\n')
    assert read_csv(path) == (("a man\nand a dog", 12, None, ""),)
    path.write_text("caption\na\nb\n")
    assert [row.seed for row in read_csv(path)] == [0, 1]


def test_groups_that_are_named_exist() -> None:
    assert {"reworded", "joined", "beside", "look_alikes"} <= {group.name for group in GROUPS}
