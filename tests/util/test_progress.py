import sys

import pytest

from efface.util.progress import progress, quiet


def test_it_yields_everything_and_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]):
    assert list(progress(range(5), "steps")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_it_shows_a_bar_on_standard_error_of_a_terminal(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    inner = []
    for _ in progress(range(3), "outer"):
        inner += list(progress(range(2), "inner"))
    assert len(inner) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "outer" in captured.err
    assert "inner" not in captured.err


def test_quiet_silences_it(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with quiet():
        assert list(progress([1], "steps", total=1)) == [1]
    assert capsys.readouterr().err == ""
