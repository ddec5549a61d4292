"""The page is self-contained, its tables have the numbers, and its verdicts follow from them."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import BadInput
from efface.evaluation.compare import check_comparable
from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Aggregate, Asked, Base, Made, Record, Row, Sampling
from efface.evaluation.summary import Change, Share, Summary
from efface.judge import Profile
from efface.report import grid, tables
from efface.report.page import CellImage, Column, Line, Page, render, save, sections
from efface.report.verdict import GONE, SURE, Verdict, verdict, verdicts

GROUP = {group.name: group for group in GROUPS}


def rows(group: str, before: int, after: int, n: int, concept: str = "church") -> list[Row]:
    """Make the rows of a group; hits after are among the hits before as far as they can be."""

    def row(maker: Any, seed: int, hit: bool) -> Row:
        asked = Asked(prompt=f"a {concept}, {group}", seed=seed, steps=20, guidance=7.5)
        return Row(
            made_by=maker, groups=(group,), concept=concept, label=concept, judged="object", query=asked,
            seen=concept if hit else "dog", top1=hit, top5=True, image="0",
        )  # fmt: skip

    sides = (("original", before), ("edited", after))
    return [row(maker, seed, seed < hits) for maker, hits in sides for seed in range(n)]


def summary(before: int, after: int, n: int) -> Summary:
    """Make a group as a record computes it."""
    return result_of([*rows("target", before, after, n)]).summaries["target"]


def result_of(found: list[Row], **profile: Any) -> Record:
    made = Made(id="e", method="uce", fields={"ridge": 0.5})
    sampling = Sampling(solver="DDIM", steps=20, guidance=7.5, seeds={"seeds": (0,)}, prompts={})
    return Record(
        concepts=("church",), model=Base(name="mini", id="m"), edit=made, rows=tuple(found),
        evaluator=Profile(evaluator="j", **profile), sampling=sampling,
    )  # fmt: skip


def result(after: int = 0, unrelated: int = 190, **profile: Any) -> Record:
    found = rows("target", 31, after, 32) + rows("related", 40, 40, 48, "house")
    found += rows("unrelated", 190, unrelated, 200, "dog") + rows("implicit", 20, 15, 24)
    return result_of(found, **profile)


def page(*results: Record) -> Page:
    columns = [Column(f"M{i}", "a <b>method</b>", r) for i, r in enumerate(results)]
    images = torch.rand(2, 3, 8, 8)
    cell = [
        CellImage(grid.data_uri(grid.to_image(i)), w, w == "church")
        for i, w in zip(images, ("church", "dog"), strict=True)
    ]
    lines = [Line('a "church" & more', "erased", [cell] * (1 + len(columns)))]
    return Page("A title", "A lead.", columns, lines, {"model": "mini"}, [("all", "1 s")], ["efface demo"])


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


def test_the_page_is_self_contained_and_well_formed() -> None:
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
        render(page(result(sha256={"a": "a"}), result(sha256={"a": "b"})))
    with pytest.raises(BadInput, match="no results"):
        check_comparable([])


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
    assert tables.per_concept([result()], ["UCE"]).rows[0] == ["church", "erased", "", "97 %", "0 %"]


def test_percent_never_rounds_away_what_is_there() -> None:
    assert [tables.percent(x) for x in (0.0, 0.002, 0.5, 0.998, 1.0)] == ["0 %", "0.2 %", "50 %", "99.8 %", "100 %"]


def target(before: int, after: int, n: int) -> Verdict:
    return verdict(GROUP["target"], summary(before, after, n), "church")


@pytest.mark.parametrize(
    ("before", "after", "says", "tone"),
    [
        (31, 0, "is gone", "good"),
        (31, 10, "less often", "mixed"),
        (31, 30, "still generated", "bad"),
        (1, 0, "hardly shows church before", "open"),
    ],
)
def test_verdict_on_the_target(before: int, after: int, says: str, tone: str) -> None:
    found = target(before, after, 32)
    assert says in found.text
    assert found.tone == tone
    assert f"{after} of 32" in found.numbers


@pytest.mark.parametrize("n", [1, 2, 5, 12, 15])
@pytest.mark.parametrize("group", ["target", "implicit"])
def test_few_images_never_say_that_a_concept_is_gone(group: str, n: int) -> None:
    """Of 0 in 2 the interval ends at 66 %: too few to tell, whatever the share is."""
    found = verdict(GROUP[group], summary(n, 0, n), "church")
    assert found.tone == "open"
    assert found.text.startswith(f"{n} images are too few to tell whether")
    assert f"0 of {n}" in found.numbers


@pytest.mark.parametrize("group", ["target", "implicit"])
def test_sixteen_images_are_enough(group: str) -> None:
    """The stated rule: at most 5 %, and an interval that ends at or below 20 %."""
    assert (GONE, SURE) == (0.05, 0.2)
    assert verdict(GROUP[group], summary(16, 0, 16), "church").tone == "good"
    assert verdict(GROUP[group], summary(25, 1, 25), "church").tone == "good"
    assert verdict(GROUP[group], summary(20, 1, 20), "church").tone == "open"  # 5 %, and an interval up to 24 %


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
    found = verdict(GROUP["related"], summary(before, after, n), "church")
    assert says in found.text
    assert found.tone == tone


@pytest.mark.parametrize(("after", "tone"), [(0, "good"), (8, "mixed"), (20, "bad")])
def test_verdict_on_implicit_prompts(after: int, tone: str) -> None:
    assert verdict(GROUP["implicit"], summary(20, after, 24), "church").tone == tone


def test_verdicts_prefer_what_was_not_to_be_preserved() -> None:
    found = result()
    assert [v.group for v in verdicts(found)] == ["target", "implicit", "related", "unrelated"]
    more = found.model_copy(update={"rows": (*found.rows, *rows("unpreserved", 95, 95, 100, "fox"))})
    assert [v.group for v in verdicts(more)] == ["target", "implicit", "related", "unpreserved"]
    assert "not to be preserved" in verdicts(more)[-1].text


def test_a_record_without_rows_goes_into_the_same_table() -> None:
    """What was aggregated before records had rows gives the same cells; it knows no single concepts."""
    whole = result()
    head = whole.model_dump(exclude={"rows", "kind"})
    old = Aggregate(**head, groups=whole.summaries)
    table = tables.accuracy([whole, old], ["rows", "none"])
    assert all(line[3] == line[4] for line in table.rows)
    assert old.singles == {}
    assert verdicts(old) == verdicts(whole)


def test_shares_add_and_have_a_rest() -> None:
    assert Share(hits=2, n=5) + Share(hits=1, n=3) == Share(hits=3, n=8)
    assert Share(hits=2, n=5).rest == Share(hits=3, n=5)
    assert Share(hits=0, n=0).interval == (0, 1)
    assert Change.of([], []).low == -1


def test_sections_are_found_by_name_and_ordered() -> None:
    names = [module.__name__.rpartition(".")[2] for module in sections()]
    assert names == ["verdicts", "images", "attacks", "accuracy", "scores", "times", "provenance"]
    assert all(module.__doc__ for module in sections())


def test_a_new_section_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.report import page as module
    from efface.report import sections as package

    for file in module.SECTIONS.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "extra_for_test.py").write_text("ORDER = 25\n\n\ndef render(page):\n    return '<p>extra</p>'\n")
    monkeypatch.setattr(module, "SECTIONS", tmp_path)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    text = render(page(result()))
    assert text.index("<figure>") < text.index("<p>extra</p>") < text.index("Judged accuracy")
