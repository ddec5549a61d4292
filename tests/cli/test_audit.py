"""`efface audit` and `efface bench protocol:…` from end to end, on digits."""

from pathlib import Path

import pytest

import efface
from efface.cli.app import run

PROTOCOL = """
title = "A very small audit"
paper = "none"
table = "none"

[full]
attacks = [
  {name = "gradient", restarts = 1, iterations = 1, noises = 1, steps = 1, images = 1, ranking = 1},
  "probe_prompts",
]
seeds = {target = 2, related = 1, others = 1, attack = 2}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    efface.erase(efface.load("digits:mnist"), "7", method="negative").save("seven.safetensors")
    (tmp_path / "small.toml").write_text(PROTOCOL)
    return tmp_path


def test_an_audit_is_a_page_and_a_card(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "seven.safetensors", "--protocol", "small.toml"]) == 0
    said = capsys.readouterr()
    folder = place / "audits" / "seven"
    text = (folder / "card.md").read_text()
    assert text.startswith("# Erasure card: 7\n")
    assert "gradient" in text
    assert "Not run: probe" in text.replace("\\", "")  # digits have no words; it is said, and nothing else is lost
    assert "small" in text
    page = (folder / "index.html").read_text()
    assert "gradient" in page
    assert "card.md" in said.out
    assert "2 images are too few" in said.out or "7 is" in said.out
    assert run(["audit", "seven.safetensors", "--protocol", "small.toml"]) == 0
    assert "2 were done" in capsys.readouterr().out
    before = (folder / "card.md").read_text()
    assert before == text


def test_protocols_are_listed_with_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "protocols"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "KPOP, table 2" in lines["kpop-objects"]
    assert "--data coco, i2p, inception" in lines["rece-nudity"]
    assert "mini only" in lines["neighbours"]


def test_the_jobs_of_a_protocol(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "protocol:kpop-objects", "--model", "mini", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * 2
    assert all(line.startswith("to do") and line.count("+") == 4 for line in lines)
    assert not (place / "runs").exists()
