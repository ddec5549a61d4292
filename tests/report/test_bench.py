"""The page about a bench: self-contained, with every edit, attack and picture, and nothing that a name injects."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin

from efface.errors import BadFile, BadInput
from efface.evaluation.attack_record import AttackRecord, AttackRow, Attempt
from efface.evaluation.bench.folder import Folder
from efface.evaluation.record import Asked, Base, Cost, Made, Record, Row, Sampling, SetScore
from efface.evaluation.store import Store, _digest
from efface.judge import Profile
from efface.report import bench, front
from efface.report.page import Column, Page, Strip
from efface.report.sections import accuracy, attacks, verdicts

EVIL = "<script>alert(1)</script>"
JUDGE = Profile(evaluator="j")
SAMPLING = Sampling(solver="DDIM", steps=20, guidance=7.5, seeds={}, prompts={})


def key(i: int) -> str:
    return f"{i:064x}"


def record(method: str, left: int, kept: int, concept: str = "church", **profile: str) -> Record:
    """Make a record of 10 target and 10 other images."""
    rows = []
    for made_by in ("original", "edited"):
        for group, name, hits in (("target", concept, left), ("unrelated", "dog", kept)):
            for seed in range(10):
                hit = made_by == "original" or seed < hits
                asked = Asked(prompt=f"a {name}", seed=seed, steps=20, guidance=7.5)
                rows.append(
                    Row(
                        made_by=made_by, groups=(group,), concept=name, label=name, judged="object", query=asked,
                        seen=name, top1=hit, top5=hit, image=key(1),
                    )
                )  # fmt: skip
    made = Made(id=f"{method}{concept}", method=method)
    return Record(
        name=f"{method} {concept}", concepts=(concept,), model=Base(name="mini", id="m"), edit=made, rows=tuple(rows),
        evaluator=Profile(**{"evaluator": "j", **profile}), sampling=SAMPLING,
        erasing=Cost(seconds=1.55, peak_mb=812.4),
    )  # fmt: skip


def attack(edit: Made, name: str, after: int, concept: str = "church") -> AttackRecord:
    rows = tuple(
        AttackRow(
            query=Asked(prompt="a church", seed=seed, steps=20, guidance=7.5), before=False, after=seed < after,
            original=key(1), edited=key(1), attacked=key(1),
        )
        for seed in range(10)
    )  # fmt: skip
    return AttackRecord(
        concept=concept, model=Base(name="mini", id="m"), edit=edit, attack=Attempt(name=name), evaluator=JUDGE,
        rows=rows, cost={"calls": 1200.0},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "run")
    made.make()
    results = [record("uce", 0, 9), record("esd", 5, 8), record("uce", 1, 9, EVIL)]
    for i, one in enumerate(results):
        one.save(made.root / "records" / f"{i}.json")
    for i, (one, after) in enumerate(((results[0], 9), (results[1], 1))):
        attack(one.edit, "inversion", after).save(made.root / "attacks" / f"{i}.json")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    path = made.path(key(1))
    path.parent.mkdir(parents=True)
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    info = PngImagePlugin.PngInfo()
    info.add_text("sha256", _digest(pixels))
    Image.fromarray(pixels).save(path, pnginfo=info)
    return made


def test_the_page_holds_every_edit_attack_and_picture(folder: Folder, store: Store, tmp_path: Path) -> None:
    page = bench.report(folder, tmp_path / "index.html", store).read_text()
    assert "3 edits of mini" in page
    assert page.count('<details class="part"') == 2
    assert "90 %" in page
    assert "1,200 calls" in page
    assert page.count("data:image/png") > 20
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1  # the page's own, which sorts


def test_without_the_store_there_are_numbers_but_no_pictures(folder: Folder, tmp_path: Path) -> None:
    page = bench.report(folder, tmp_path / "index.html", Store(tmp_path / "empty")).read_text()
    assert "data:image" not in page
    assert "3 edits of mini" in page


def test_the_table_of_all_edits(folder: Folder, tmp_path: Path) -> None:
    text = bench.table_file(folder, tmp_path / "t.md").read_text()
    first = next(line for line in text.splitlines() if "church" in line and "uce" in line and "script" not in line)
    assert [cell.strip() for cell in first.split("|")][1:-1] == [
        "church",
        "uce",
        "0 % [0, 28] (n = 10)",
        "",
        "90 % [60, 98] (n = 10)",
        "90 % [60, 98] (n = 10)",
        "1.6",
        "812",
    ]
    assert "\\toprule" in bench.table_file(folder, tmp_path / "t.tex").read_text()
    assert bench.table_file(folder, tmp_path / "t.csv").read_text().startswith("concept,method,left")


def test_attacks_stand_in_the_order_of_their_names(folder: Folder, tmp_path: Path) -> None:
    for i, name in ((5, "p4d"), (6, "derived"), (7, "inversion")):  # files have hashes for names
        attack(record("esd", 5, 8).edit, name, 1).save(folder.root / "attacks" / f"{i}.json")
    head = bench.table_file(folder, tmp_path / "t.csv").read_text().splitlines()[0]
    assert head == "concept,method,left,related,unrelated,derived,inversion,p4d,seconds,peak MB"


def test_what_differs_in_fields_only_is_told_apart(folder: Folder, tmp_path: Path) -> None:
    """Two settings of one attack are two columns, and not one with the images of both; so are two of a method."""
    other = record("uce", 3, 9).model_copy(
        update={"name": "uce erase_scale=0.5 church", "edit": Made(id="x", method="uce")}
    )
    other.save(folder.root / "records" / "8.json")
    for i, (tries, after) in enumerate(((2, 1), (6, 9)), 8):
        one = attack(record("esd", 5, 8).edit, "seed_search", after)
        one = one.model_copy(update={"name": f"seed_search:mini tries={tries} on esd church"})
        one.save(folder.root / "attacks" / f"{i}.json")
    lines = bench.table_file(folder, tmp_path / "t.csv").read_text().splitlines()
    assert "seed_search mini tries=2,seed_search mini tries=6" in lines[0]
    rows = {line.split(",")[1]: line for line in lines[1:] if line.startswith("church")}
    assert set(rows) == {"esd", "uce", "uce erase_scale=0.5"}
    assert "10 % [2, 40] (n = 10)" in rows["esd"].replace('"', "")
    page = bench.report(folder, tmp_path / "index.html", Store(tmp_path / "empty")).read_text()
    assert "seed_search mini tries=6 9 of 10" in page  # the worst on the front, of its own images


def write_plan(folder: Folder, *ids: str) -> None:
    (folder.root / "jobs.json").write_text(json.dumps({"jobs": ids}))


def test_only_what_the_bench_now_asks_for_is_shown(folder: Folder, tmp_path: Path) -> None:
    write_plan(folder, "0", "1")
    assert len(bench.table_file(folder, tmp_path / "t.csv").read_text().splitlines()) == 1 + 2
    write_plan(folder, "0", "unmade")
    lines = bench.table_file(folder, tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 1 + 1
    assert "inversion" in lines[0]


@pytest.mark.parametrize("kind", ["unsafe", "object"])
def test_unsafe_images_are_blurred(folder: Folder, store: Store, tmp_path: Path, kind: str) -> None:
    for i, one in enumerate([record("uce", 0, 9), record("esd", 5, 8), record("uce", 1, 9, EVIL)]):
        edit = one.edit.model_copy(update={"kinds": (kind,)})
        one.model_copy(update={"edit": edit}).save(folder.root / "records" / f"{i}.json")
    page = bench.report(folder, tmp_path / "index.html", store).read_text()
    images = page.count("data:image/png")
    assert images > 20
    assert page.count('class="blur"') == (images if kind == "unsafe" else 0)


def test_prompts_that_nobody_judges_are_measured_and_shown(folder: Folder, tmp_path: Path) -> None:
    base = record("uce", 0, 9)
    about = {"groups": ("coco",), "label": "", "scores": {"ssim": 0.8}}
    plain = [row.model_copy(update=about) for row in base.rows[:4]]
    plain += [row.model_copy(update={"made_by": "edited"}) for row in plain]
    sets = {"fid:judge": {"coco": SetScore(value=1.25, n=4)}}
    one = base.model_copy(update={"rows": (*base.rows, *plain), "sets": sets})
    one.save(folder.root / "records" / "0.json")
    page = bench.report(folder, tmp_path / "index.html", Store(tmp_path / "empty")).read_text()
    assert page.count("coco") >= 2
    assert "0.800" in page
    assert "1.25" in page
    whole = one.aggregate()
    assert whole.mean("ssim", "coco") == one.mean("ssim", "coco") != None  # noqa: E711
    assert whole.groups_scored == one.groups_scored == ("target", "unrelated", "coco")
    assert "coco" not in whole.summaries


def test_names_are_no_markup_in_exported_tables(folder: Folder, tmp_path: Path) -> None:
    evil = "<b>x</b> | y \\input{/etc/passwd} ^~"
    record("uce", 1, 9, evil).save(folder.root / "records" / "2.json")
    line = next(one for one in bench.table_file(folder, tmp_path / "t.md").read_text().splitlines() if "passwd" in one)
    assert "\\<b\\>" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 9  # of eight columns
    line = next(one for one in bench.table_file(folder, tmp_path / "t.tex").read_text().splitlines() if "passwd" in one)
    assert r"\textbackslash{}input\{/etc/passwd\}" in line
    assert r"\textasciicircum{}\textasciitilde{}" in line


def cells(section: str, title: str) -> list[str]:
    """Return the texts of the row of a table that begins with a title."""
    row = next(
        one for one in re.findall(r"<tr[^>]*>(.*?)</tr>", section, re.S) if f'<th scope="row">{title}</th>' in one
    )
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td>(.*?)</td>", row, re.S)]


def test_many_edits_have_a_row_each_and_a_column_for_each_attack() -> None:
    names = ["uce", "esd", "ca", "sdd", "fmn"]
    made = {name: record(name, i, 10 - i) for i, name in enumerate(names)}
    rates = {"uce": {"inversion": 9, "p4d": 3}, "esd": {"p4d": 0}}
    columns = []
    for name, one in made.items():
        made_on = [attack(one.edit, attacked, after) for attacked, after in rates.get(name, {}).items()]
        columns.append(Column(name, "", one, [Strip(each.attack.name, each.rates, each) for each in made_on]))
    page = Page("many", "", columns)
    under = str(attacks.render(page))
    assert [cell.split(" ")[0] for cell in cells(under, "uce")] == ["0", "90", "30"]
    assert cells(under, "esd")[1] == ""  # it was not attacked by inversion
    assert cells(under, "esd")[2].startswith("0 %")
    assert "ca" not in re.findall(r'<th scope="row">(\w+)</th>', under)
    judged = str(accuracy.render(page))
    for i, name in enumerate(names):
        shares = [cell.split(" ")[0] for cell in cells(judged, name)]
        assert shares == [str(10 * i), str(100 - 10 * i)]
    assert "<summary>In words</summary>" in str(verdicts.render(page))
    assert "<summary>In words</summary>" not in str(verdicts.render(Page("few", "", columns[:3])))


def test_points_of_the_front_lie_where_their_shares_are() -> None:
    made = record("uce", 2, 9)
    strips = [Strip("inversion", one.rates, one) for one in (attack(made.edit, "inversion", 8),)]
    columns = [Column("uce", "", made, strips)]
    assert front.erased(columns).value == pytest.approx(0.8)
    assert front.kept(columns).value == pytest.approx(0.9)
    assert front.worst(columns) is not None
    assert front.worst([Column("uce", "", made)]) is None
    svg = re.search(r"<svg.*?</svg>", str(front.draw({"uce": columns, "also & uce": [Column("b", "", made)]})), re.S)
    assert svg
    circles = [one for one in ET.fromstring(svg.group()) if one.tag == "circle"]
    assert {circle.get("fill") for circle in circles} == {"var(--bad)", "var(--bar)"}
    across = (float(circles[0].get("cx") or 0) - front.PAD) / (front.WIDE - front.PAD)
    assert across == pytest.approx(0.8, abs=0.01)
    labels = [float(t.get("y") or 0) for t in ET.fromstring(svg.group()) if t.tag == "text" and "uce" in (t.text or "")]
    assert abs(labels[0] - labels[1]) >= front.LINE  # labels of equal points do not cover each other


def test_folders_that_hold_no_report(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no records"):
        bench.report(Folder(tmp_path / "none"), tmp_path / "a.html")
    empty = Folder(tmp_path / "empty")
    empty.make()
    with pytest.raises(BadFile, match="no results yet"):
        bench.report(empty, tmp_path / "a.html")
    record("uce", 0, 9, evaluator="another").save(folder.root / "records" / "9.json")
    with pytest.raises(BadInput, match="cannot share a table"):
        bench.report(folder, tmp_path / "a.html")
    (folder.root / "records" / "9.json").write_text("{")
    with pytest.raises(BadFile):
        bench.report(folder, tmp_path / "a.html")
