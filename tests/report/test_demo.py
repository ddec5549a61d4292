"""The demo on a random tiny model: its page, its edits, and that nothing is generated twice."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from efface import Concept, Edit
from efface.cli import parse
from efface.errors import BadModel
from efface.evaluation.prompts import Plan, preserved
from efface.evaluation.record import Record, read
from efface.evaluation.store import Store
from efface.judge import Judge, Profile
from efface.models.model import Model
from efface.report.demo import RECIPES, Recipe, _flags, demo
from efface.report.images import choose, lines

OBJECTS = ("church", "house", "castle", "guitar", "dog", "wolf", "fox", "cat")
TABLE = {n: Concept(n, keywords=("red", "blue", "moon", "cross")) for n in OBJECTS}
TABLE["church"] = Concept("church", related=("house", "castle"), keywords=("red", "blue", "moon", "cross"))
TABLE |= {"neon": Concept("neon", kind="style")}
PLAN = Plan(target_seeds=(0, 1, 2), related_seeds=(0,), seeds=(0,), implicit_seeds=(0,), styled_seeds=(0,), steps=1)


class Random(Judge):
    classes, styles, profile = OBJECTS, ("plain", "neon"), Profile(evaluator="random")

    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        maps = torch.randn(3 * 16 * 16, len(OBJECTS), generator=torch.Generator().manual_seed(0))
        return ((images - 0.5).flatten(1) @ maps).softmax(dim=1)

    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]:
        return self.objects(images)[:, :2]


def test_demo_writes_a_page_and_the_edits(tiny: Model, tmp_path: Path) -> None:
    recipes = [recipe for recipe in RECIPES if recipe.method != "esd"]
    told: list[str] = []
    page = demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, recipes, Store(tmp_path / "s"), told.append)
    assert page == tmp_path / "index.html"
    text = page.read_text()
    assert all(recipe.title in text for recipe in recipes)
    shown = (
        3 + 1 + 1 + 2 + 3
    )  # seeds of the target; of one prompt asked in a style, implicit; two related, three others
    assert text.count("<img") == shown * (1 + len(recipes))
    assert any("UCE" in line for line in told)
    for recipe in recipes:
        edit = Edit.load(tmp_path / f"church-{recipe.method}.safetensors")
        assert edit.meta["method"] == recipe.method
        (record,) = read(tmp_path / f"church-{recipe.method}.json")
        assert record.edit.id == edit.id
        assert record.edit.method == recipe.method
        assert [c["name"] for c in edit.meta["preserve"]] == [c.name for c in preserved(TABLE["church"], TABLE)]


def test_the_commands_on_the_page_give_the_plan(tmp_path: Path) -> None:
    """Read the page's flags as the command line does and build the plan again."""
    plan = Plan(
        target_seeds=(0, 1, 2), related_seeds=(5,), seeds=(0, 3), implicit_seeds=(1, 2), styled_seeds=(4,), steps=7,
        guidance=3.5, solver="ddim",
    )  # fmt: skip
    words = _flags(plan).split()
    read_back = dict(zip(words[::2], words[1::2], strict=True))
    seeds = {name: parse.seeds(read_back["--" + name.replace("_", "-")]) for name in Plan.SEEDS}
    sampling = {"steps": int(read_back["--steps"]), "guidance": float(read_back["--guidance"])}
    assert Plan(**seeds, **sampling, solver=read_back["--solver"]) == plan


def test_a_second_demo_generates_nothing(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe("UCE", "uce", "closed form")]
    first = demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, recipes, Store(tmp_path / "s"))
    before = first.read_text()
    monkeypatch.setattr(Model, "generate", None)
    again = demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, recipes, Store(tmp_path / "s"))
    assert again.read_text().count("<img") == before.count("<img")


def test_images_show_the_erased_two_related_and_three_unrelated(tiny: Model, tmp_path: Path) -> None:
    """They are read from the record and the store; images no longer in the store are left out."""
    store = Store(tmp_path / "s")
    demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, [RECIPES[0]], store)
    (record,) = read(tmp_path / "church-uce.json")
    assert isinstance(record, Record)
    chosen = choose(record)
    groups = [one.group for one in chosen]
    assert groups == [
        "erased",
        "erased, asked for in a style",
        "implicit prompts",
        *["related"] * 2,
        *["unrelated"] * 3,
    ]
    labels = [one.label for one in chosen if one.group == "unrelated"]
    assert len(set(labels)) == 3
    assert not set(labels) & {"church", "house", "castle", "neon"}
    shown = lines([record], store)
    assert [len(line.cells) for line in shown] == [2] * 8
    assert [len(line.cells[0]) for line in shown] == [3, 1, 1, 1, 1, 1, 1, 1]
    first = record.rows[0]
    assert shown[0].cells[0][0].seen == first.seen
    store.path(first.image).unlink()
    assert len(lines([record], store)[0].cells[0]) == 2


def test_half_of_the_other_objects_are_preserved() -> None:
    names = [c.name for c in preserved(TABLE["church"], TABLE)]
    assert names == ["house", "guitar", "wolf", "cat"]


def test_a_model_without_a_table_is_refused_first(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="concept table"):
        demo(tmp_path, tiny, Concept("church"), {}, Random(), PLAN)
    assert list(tmp_path.iterdir()) == []
