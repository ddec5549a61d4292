"""Records on disk: written whole, read back equal, and refused in one line when they are not what they should be."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from efface.errors import BadFile, BadInput, WriteError
from efface.evaluation.compare import check_comparable
from efface.evaluation.record import Aggregate, Asked, Base, Made, Record, Row, Sampling, read
from efface.evaluation.summary import Mean
from efface.judge import Profile


def a_row(maker: Any, seed: int, hit: bool) -> Row:
    asked = Asked(prompt="a church", seed=seed, steps=4, guidance=7.5)
    return Row(
        made_by=maker, groups=("target",), concept="church", label="church", judged="object", query=asked,
        seen="church" if hit else "dog", top1=hit, top5=True, scores={"ssim": 0.5 + seed}, image="ab",
    )  # fmt: skip


def a_record(**values: Any) -> Record:
    rows = tuple(a_row(maker, seed, maker == "original") for maker in ("original", "edited") for seed in range(3))
    sampling = Sampling(solver="DDIM", steps=4, guidance=7.5, seeds={"seeds": (0,)}, prompts={"object": "a {}"})
    given = {
        "concepts": ("church",), "model": Base(name="mini", id="1"), "edit": Made(id="2", fields={"a": [1, None]}),
        "evaluator": Profile(evaluator="j"), "sampling": sampling, "rows": rows,
    }  # fmt: skip
    return Record(**(given | values))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = a_record()
    record.save(tmp_path / "one.json")
    assert read(tmp_path / "one.json") == [record]
    old = Aggregate(
        **record.model_dump(exclude={"rows", "kind"}), groups=record.summaries,
        means={"ssim": {"target": Mean(value=0.5, error=0.1, n=3)}},
    )  # fmt: skip
    failed = a_record(rows=(), error="out of memory")
    for each in (record, old, failed):
        each.append(tmp_path / "all.jsonl")
    assert read(tmp_path / "all.jsonl") == [record, old, failed]
    assert old.summaries == record.summaries
    assert old.mean("ssim", "target") == Mean(value=0.5, error=0.1, n=3)
    assert old.mean("ssim", "related") is None
    assert failed.summaries == failed.singles == {}


def test_appending_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    a_record().append(path)
    first = path.read_text()
    a_record(name="second").append(path)
    assert path.read_text().startswith(first)
    assert path.read_text().count("\n") == 2


def test_a_record_is_frozen_and_knows_its_fields() -> None:
    record = a_record()
    with pytest.raises(ValidationError, match="frozen"):
        record.git = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="surprise"):
        a_record(surprise=1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "", "not valid JSON"),
        (lambda text: "[1, 2]", "not a record of format 2"),
        (lambda text: json.dumps({"groups": {}, "concept": "church"}), "not a record of format 2"),
        (lambda text: text.replace('"format": 2', '"format": 3'), "format"),
        (lambda text: text.replace('"top1"', '"top2"', 1), "top"),
        (lambda text: text.replace('"seed": 0', '"seed": "x"', 1), "seed"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_anything_else_is_refused_in_one_line(tmp_path: Path, damage: Any, says: str, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    whole = json.dumps(json.loads(a_record().model_dump_json()))
    text = damage(whole)
    path.write_text(text)
    if suffix == ".jsonl" and not text:
        assert read(path) == []
        return
    with pytest.raises(BadFile, match=says) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot read"):
        read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="cannot read"):
        read(tmp_path / "bytes.json")
    with pytest.raises(WriteError):
        a_record().save(tmp_path / "no" / "folder.json")
    with pytest.raises(WriteError):
        a_record().append(tmp_path / "no" / "folder.jsonl")


def test_both_models_must_have_the_same_queries() -> None:
    record = a_record()
    with pytest.raises(BadInput, match="same prompts and seeds"):
        _ = record.model_copy(update={"rows": record.rows[:-1]}).summaries


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"evaluator": Profile(evaluator="k")}, "evaluator"),
        ({"evaluator": Profile(evaluator="j", threshold=0.3)}, "threshold"),
        ({"model": Base(name="mini", id="9")}, "model"),
        ({"sampling": a_record().sampling.model_copy(update={"steps": 9})}, "steps"),
        ({"sampling": a_record().sampling.model_copy(update={"seeds": {}})}, "seeds"),
    ],
)
def test_records_of_different_profiles_do_not_share_a_table(change: Any, says: str) -> None:
    check_comparable([a_record(), a_record()])
    with pytest.raises(BadInput, match=f"their {says} differs"):
        check_comparable([a_record(), a_record(**change)])
