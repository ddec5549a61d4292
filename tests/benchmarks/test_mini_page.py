"""What the page about mini says of the papers' findings on erasing."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from efface.evaluation.summary import Share

page: Any = import_module("mini_page")


def scored(method: str, preset: str, left: int) -> Any:
    """Make what is read of a record: of 24 images of the target, how many still show it."""
    share = Share(hits=left, n=24)
    groups = {name: SimpleNamespace(after=share) for name in ("target", "implicit", "unpreserved")}
    return SimpleNamespace(edit=SimpleNamespace(method=method, preset=preset), concepts=("church",), summaries=groups)


def test_findings_are_told_by_intervals_that_are_apart() -> None:
    rows = [scored("negative", "", 24), scored("esd", "mini", 0), scored("sld", "mini", 0), scored("sld", "max", 24)]
    lines = [line for line in page.findings(rows) if line.startswith(("| a negative", "| SLD", "| the task"))]
    assert [line.split("|")[-2].strip() for line in lines] == ["agrees", "cannot be told", "not measured"]
    assert page.findings([scored("esd", "mini", 24), rows[0]])[5].endswith("cannot be told |")


def test_findings_are_about_methods_of_the_table() -> None:
    known = {chosen.name for chosen in page.methods.BENCH.methods}
    known |= {f"{chosen.name}:{chosen.preset}" for chosen in page.methods.BENCH.methods}
    assert {name for one in page.FINDINGS for name in (one.more, one.less)} <= known
