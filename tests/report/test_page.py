"""The page stands alone, its tables hold the numbers, and its words say no more than the numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import BadInput
from efface.evaluation.stats import paired_difference, wilson
from efface.report import tables
from efface.report.page import Column, Page, Row, render, save, shots
from efface.report.verdict import implied, kept, target, verdicts


def group(before: int, after: int, n: int) -> dict[str, Any]:
    """Make a group as `evaluate` does; hits after are among the hits before as far as they can be."""

    def side(hits: int) -> dict[str, Any]:
        ends = [round(e, 6) for e in wilson(hits, n)]
        return {"top1": hits / n if n else 0.0, "top5": 1.0, "n": n, "ci95": ends, "top5_ci95": ends}

    pair = [i < before for i in range(n)], [i < after for i in range(n)]
    change = {"top1": (after - before) / n if n else 0.0, "ci95": list(paired_difference(*pair))}
    return {"before": side(before), "after": side(after), "change": change}


def result(after: int = 0, unrelated: int = 190, **profile: Any) -> dict[str, Any]:
    groups = {
        "target": group(31, after, 32),
        "related": group(40, 40, 48),
        "unrelated": group(190, unrelated, 200),
        "implicit": group(20, 15, 24),
    }
    singles = {"church": {"group": "target", "kept": False, **group(31, after, 32)}}
    return {
        "concept": "church",
        "model": "mini",
        "edit": "e",
        "groups": groups,
        "per_concept": singles,
        "profile": {"evaluator": "j", "seeds": [0], "steps": 20, **profile},
    }


def page(*results: dict[str, Any]) -> Page:
    columns = [Column(f"M{i}", "a <b>method</b>", 1.0, {"method": "uce"}, r) for i, r in enumerate(results)]
    cell = shots(torch.rand(2, 3, 8, 8), ["church", "dog"], "church")
    rows = [Row('a "church" & more', "erased", [cell] * (1 + len(columns)))]
    return Page("A title", "A lead.", columns, rows, {"model": "mini"}, [("all", "1 s")], ["efface demo"])


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "rect", "line", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stands_alone_and_is_well_formed() -> None:
    text = render(page(result(), result(3)))
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    assert parser.found
    assert all(link.startswith("data:image/png;base64,") for link in parser.found)
    assert not re.search(r"<script|https?://|@import|url\(", text)


def test_page_shows_the_numbers_and_escapes_text() -> None:
    text = render(page(result()))
    assert "97\N{NO-BREAK SPACE}%" in text  # 31 of 32 before
    assert "a &lt;b&gt;method&lt;/b&gt;" in text
    assert "a &#34;church&#34; &amp; more" in text
    assert text.count("<img") == 4
    assert text.count('class="right"') == 2


def test_page_is_a_function_of_its_values(tmp_path: Path) -> None:
    made = page(result())
    save(made, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == render(made)


def test_results_of_different_judges_do_not_share_a_table() -> None:
    with pytest.raises(BadInput, match="sha256"):
        render(page(result(sha256="a"), result(sha256="b")))
    with pytest.raises(BadInput, match="no results"):
        tables.check_comparable([])


def test_tables_in_three_formats() -> None:
    table = tables.accuracy([result(), result(3)], ["UCE", "ESD_x"])
    assert table.header == ["prompts", "images", "before", "UCE", "ESD_x"]
    assert table.rows[0][:4] == ["erased", "32", "97 % [84, 99]", "0 % [0, 11]"]
    assert tables.to_csv(table).splitlines()[1].startswith("erased,32,")
    assert r"ESD\_x" in tables.latex(table)
    assert r"97 \% [84, 99]" in tables.latex(table)
    lines = tables.markdown(table).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(tables.plain(table).splitlines()) == 1 + len(table.rows)
    assert tables.per_concept([result()], ["UCE"]).rows == [["church", "erased", "", "97 %", "0 %"]]


def test_percent_never_rounds_away_what_is_there() -> None:
    assert [tables.percent(x) for x in (0.0, 0.002, 0.5, 0.998, 1.0)] == ["0 %", "0.2 %", "50 %", "99.8 %", "100 %"]


@pytest.mark.parametrize(
    ("before", "after", "says", "tone"),
    [
        (31, 0, "is gone", "good"),
        (31, 10, "less often", "mixed"),
        (31, 30, "still drawn", "bad"),
        (1, 0, "still", "bad"),
    ],
)
def test_verdict_on_the_target(before: int, after: int, says: str, tone: str) -> None:
    verdict = target(group(before, after, 32), "church")
    assert says in verdict.text
    assert verdict.tone == tone
    assert f"{after} of 32" in verdict.numbers


@pytest.mark.parametrize(
    ("before", "after", "n", "says", "tone"),
    [
        (190, 190, 200, "stay", "good"),
        (9, 9, 9, "do not rule one out", "open"),
        (9, 8, 9, "do not settle it", "mixed"),
        (190, 120, 200, "suffer", "bad"),
        (980, 950, 1000, "stay", "good"),
        (390, 374, 400, "a little", "mixed"),
    ],
)
def test_verdict_on_what_should_stay(before: int, after: int, n: int, says: str, tone: str) -> None:
    verdict = kept(group(before, after, n), "others")
    assert says in verdict.text
    assert verdict.tone == tone


@pytest.mark.parametrize(("after", "tone"), [(0, "good"), (8, "mixed"), (20, "bad")])
def test_verdict_on_hints(after: int, tone: str) -> None:
    assert implied(group(20, after, 24), "church").tone == tone


def test_verdicts_prefer_what_no_one_protected() -> None:
    found = result()
    assert [v.claim for v in verdicts(found)] == ["erased", "kept", "kept", "hints"]
    found["groups"]["unprotected"] = group(95, 95, 100)
    assert "outside the keep list" in verdicts(found)[2].text
