"""The demo on a random tiny model: its page, its edits, and that nothing is drawn twice."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from efface import Concept, Edit
from efface.cli import parse
from efface.errors import BadModel
from efface.evaluation.prompts import Plan
from efface.evaluation.store import Store
from efface.models.model import Model
from efface.report.demo import RECIPES, Recipe, _flags, choose, demo, keeps

OBJECTS = ("church", "house", "castle", "guitar", "dog", "wolf", "fox", "cat")
TABLE = {n: Concept(n, keywords=("red", "blue", "moon", "cross")) for n in OBJECTS}
TABLE["church"] = Concept("church", related=("house", "castle"), keywords=("red", "blue", "moon", "cross"))
TABLE |= {"neon": Concept("neon", kind="style")}
PLAN = Plan(focus=(0, 1, 2), near=(0,), seeds=(0,), hints=(0,), styled=(0,), steps=1)


class Random:
    classes, styles, profile = OBJECTS, ("plain", "neon"), {"evaluator": "random"}

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
    assert text.count("<img") == 7 * (1 + len(recipes)) * 3  # rows × columns × seeds
    assert any("UCE" in line for line in told)
    for recipe in recipes:
        edit = Edit.load(tmp_path / f"church-{recipe.method}.safetensors")
        assert edit.meta["method"] == recipe.method
        assert [c["name"] for c in edit.meta["keep"]] == [c.name for c in keeps(TABLE["church"], TABLE)]


def test_the_commands_on_the_page_give_the_plan(tmp_path: Path) -> None:
    """Read the page's flags as the command line does and build the plan again."""
    plan = Plan(
        focus=(0, 1, 2), near=(5,), seeds=(0, 3), hints=(1, 2), styled=(4,), steps=7, guidance=3.5, solver="ddim"
    )
    words = _flags(plan).split()
    read = dict(zip(words[::2], words[1::2], strict=True))
    names = {"target-seeds": "focus", "related-seeds": "near", "seeds": "seeds", "hint-seeds": "hints"}
    seeds = {field: parse.seeds(read[f"--{flag}"]) for flag, field in {**names, "styled-seeds": "styled"}.items()}
    sampling = {"steps": int(read["--steps"]), "guidance": float(read["--guidance"]), "solver": read["--solver"]}
    assert Plan(**seeds, **sampling) == plan


def test_a_second_demo_draws_nothing(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe("UCE", "uce", "closed form")]
    first = demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, recipes, Store(tmp_path / "s"))
    before = first.read_text()
    monkeypatch.setattr(Model, "generate", None)
    again = demo(tmp_path, tiny, TABLE["church"], TABLE, Random(), PLAN, recipes, Store(tmp_path / "s"))
    assert again.read_text().count("<img") == before.count("<img")


def test_grid_shows_the_erased_two_related_and_three_unrelated() -> None:
    rows = choose(TABLE["church"], TABLE)
    groups = [group for group, _, _ in rows]
    assert groups == ["erased", "only hinted at", "related", "related", "unrelated", "unrelated", "unrelated"]
    assert len({name for _, name, _ in rows}) == 6
    assert not {name for group, name, _ in rows if group == "unrelated"} & {"church", "house", "castle", "neon"}


def test_keeps_are_half_of_the_other_objects() -> None:
    names = [c.name for c in keeps(TABLE["church"], TABLE)]
    assert names == ["house", "guitar", "wolf", "cat"]


def test_a_model_without_a_table_is_refused_first(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="concept table"):
        demo(tmp_path, tiny, Concept("church"), {}, Random(), PLAN)
    assert list(tmp_path.iterdir()) == []
