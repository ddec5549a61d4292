import re
from pathlib import Path

import pytest
from benchmarks.digits import added

from efface.evaluation.record import Aggregate, Base, Made, Sampling
from efface.evaluation.summary import Change, Share, Summary
from efface.judge import Profile
from experiments.digits.page import Part, Shown, percent, render, sides, verdicts, worst, write
from experiments.digits.plots import Series, alphas_plot, search_plot, worst_by_alpha
from experiments.digits.records import (
    Archive,
    Best,
    Bound,
    Control,
    Experimented,
    GridSearch,
    Length,
    Lengths,
    Missed,
    Searches,
    read,
)
from experiments.digits.search import l_uncond

NONE = Share(hits=0, n=0)
ARCHIVE = Path(__file__).parents[3] / "benchmarks" / "records" / "digits.json"


def line(levels, hits, model="original", alpha=0.0, n=100):
    best = Best(
        prompt="1 0 0 0 0 0 0 0", second=Share(hits=hits, n=n), first=Share(hits=0, n=n), score=0.5, nearest="1",
        cosine=0.5, cosine_to_target=0.1,
    )  # fmt: skip
    return GridSearch(
        model=model, alpha=alpha, best=best, images=1, calls=1, seconds=1.0, levels=levels, points=256, prompts=256,
        missed=Missed(best=0.0, finalists=0.0, n=1), rounds=(),
    )  # fmt: skip


def lengths(*shares):
    tried = [
        Length(alpha=a, target=Share(hits=hits, n=1000), others=Share(hits=900, n=1000), classes={})
        for a, hits in shares
    ]
    return Lengths(weights="w", tried=tuple(tried), chooser=Profile(evaluator="e"), accuracy={"e": (9, 10)})


def record(name, target=75, others=75):
    groups = {
        "target": Summary(before=Share(hits=290, n=300), after=Share(hits=target, n=300), before5=NONE, after5=NONE,
                          change=Change(value=0.0, low=-1.0, high=1.0)),
        "unrelated": Summary(before=Share(hits=280, n=300), after=Share(hits=others, n=300), before5=NONE, after5=NONE,
                             change=Change(value=0.0, low=-1.0, high=1.0)),
    }  # fmt: skip
    sampling = Sampling(solver="DDIM", steps=5, guidance=1.0, seeds={}, prompts={})
    return Aggregate(
        name=name, concepts=("0",), model=Base(name="m", id="m"), edit=Made(id="e"), groups=groups, sampling=sampling,
        evaluator=Profile(evaluator="e", sha256={"judge": "0"}),
    )  # fmt: skip


def experimented(*lines, target="0", alpha=2.0):
    grid = {f"{i}": one for i, one in enumerate(lines)}
    return Experimented(
        dataset="mnist", target=target, lengths=lengths((alpha, 0)), table1=(record("task vector"),),
        searches=Searches(grid=grid),
    )  # fmt: skip


def test_l_uncond_is_the_smallest_level_above_epsilon():
    lines = [line(3, 60), line(2, 20), line(4, 55)]
    found = l_uncond(lines, (0.05, 0.15, 0.2, 0.5, 0.6))
    assert {e: x.level for e, x in found.items()} == {"0.05": 2, "0.15": 2, "0.2": 3, "0.5": 3, "0.6": None}
    assert {e: x.sure for e, x in found.items()} == {"0.05": 2, "0.15": 3, "0.2": 3, "0.5": 3, "0.6": None}


def test_the_shortest_vector_that_erases_is_chosen():
    assert lengths((0.5, 400), (1.0, 9), (2.0, 0)).chosen == 1.0
    assert lengths((0.5, 400), (0.75, 300)).chosen == 0.75


@pytest.mark.parametrize(
    ("tuned", "vector", "sentence"),
    [
        (90, 10, "the worst prompt of the task vector's model is safer"),
        (10, 90, "the worst prompt of the fine-tuned model is safer"),
        (50, 45, "cannot be told apart"),
    ],
)
def test_verdicts_follow_the_intervals(tuned, vector, sentence):
    lines = [line(2, 100), line(2, tuned, "fine-tuned"), line(2, vector, "task vector", 1.0)]
    lines.append(line(2, 99, "task vector", 0.5))  # of another alpha than table 1's
    assert sentence in verdicts(worst(experimented(*lines, alpha=1.0)))[-1]


def test_the_worst_prompt_of_a_model_is_of_any_search_and_of_the_table_s_length():
    lines = [line(2, 10, "task vector", 1.0), line(2, 90, "task vector", 3.0), line(3, 30, "fine-tuned")]
    lines.append(line(2, 20, "fine-tuned"))
    found = worst(experimented(*lines, alpha=1.0))
    assert {name: best.second.value for name, best in found.items()} == {"fine-tuned": 0.3, "task vector": 0.1}


def test_a_page_about_several_experiments_begins_with_all_of_them():
    searched = experimented(line(2, 25, "task vector", 2.0, n=100))
    one = Part(searched, {"grid": [Shown(line(2, 25, "task vector", 2.0))], "gradient": [], "inversion": []})
    assert "In short" not in render([one])
    bare = Part(experimented(target="7"), {"grid": [], "gradient": [], "inversion": []})
    page = render([one, bare])
    short = page[page.index("In short") : page.index("Table 1")]
    assert short.count("25.0 % <small>20.4–30.2, n = 300") == 4  # two shares each
    assert short.count("25.0 % <small>17.5–34.3, n = 100") == 1  # the worst prompt of the first
    assert short.count("task vector, α = 2<") == 2
    assert short.count("not searched") == 3
    assert "right on 9 of 10 held-out pictures" in page
    assert "<img" not in page


def test_a_page_without_a_task_vector_has_no_lengths():
    bare = experimented(line(2, 25, "fine-tuned"), alpha=2.0)
    bare = bare.model_copy(update={"lengths": None, "seed": 2, "table1": (record("fine-tuned"),)})
    page = render([Part(bare, {"grid": [], "gradient": [], "inversion": []})])
    assert "training seed 2" in page
    assert "Figure 3" in page
    assert "How long the task vector" not in page


def test_a_bound_is_beside_the_worst_prompt_found():
    two = Bound(
        model="fine-tuned", alpha=0.0, value=0.5, moment=1, hits=(3, 1), prompts=4000, steepest=1.25, slopes=(1.25,),
        seconds=1.0, cpu_seconds=1.0,
    )  # fmt: skip
    none = two.model_copy(update={"value": 1.0, "model": "task vector", "alpha": 2.0})
    found = experimented(line(2, 25, "fine-tuned"))
    searches = found.searches.with_("bound", {"a": two, "b": none})
    page = render(
        [Part(found.model_copy(update={"searches": searches}), {"grid": [], "gradient": [], "inversion": []})]
    )
    rows = page[page.index("A bound over") :].split("<tr>")
    assert "50.0 %" in rows[2]
    assert "25.0 % <small>17.5" in rows[2]
    assert "no bound below 100 %" in rows[3]
    assert "not searched" in rows[3]


def test_table_1_begins_with_the_original():
    rows = sides([record("fine-tuned", 30), record("task vector", 60)])
    assert [row.name for row in rows] == ["original", "fine-tuned", "task vector"]
    assert [row.target.hits for row in rows] == [290, 30, 60]


def test_random_prompts_of_a_grid_are_on_the_page():
    control = Control(
        model="task vector", alpha=2.0, levels=4, prompts=500, draws=4, marginal=Share(hits=2, n=500),
        largest_mean=0.2, rank_correlation=0.237,
    )  # fmt: skip
    found = experimented().model_copy(update={"searches": Searches(control={"x": control})})
    page = render([Part(found, {"grid": [], "gradient": [], "inversion": []})])
    assert "500 of L = 4" in page
    assert "0.4 % <small>0.1–1.4, n = 500" in page


def test_the_records_of_the_paper_s_experiment_give_the_page(tmp_path):
    archive = read(Archive, ARCHIVE)
    assert [(one.dataset, one.target, one.lengths.chosen) for one in archive.experiments if one.lengths] == [
        ("mnist", "0", 19.0), ("mnist", "7", 27.0), ("fashion", "bag", 24.0),
    ]  # fmt: skip
    page = write(ARCHIVE, tmp_path / "page.html").read_text(encoding="utf-8")
    doc = (ARCHIVE.parents[2] / "docs" / "digits.md").read_text(encoding="utf-8")
    for one in archive.experiments:
        for row in sides(one.table1):
            for share in (row.target, row.others):
                assert f"{percent(share)} <small>{100 * share.interval.low:.1f}" in page
                low, high = share.interval
                assert f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})" in doc
    vector = next(row for row in archive.experiments[1].table1 if row.name == "task vector")
    nine = vector.summaries["9"].after
    assert (nine.hits, nine.n) == (47, 120)


def test_what_another_folder_holds_is_added_to_the_record():
    old = experimented(line(2, 10, "task vector"), line(3, 20, "task vector"))
    fresh = line(2, 30, "fine-tuned")
    new = experimented().model_copy(
        update={"table1": (record("fine-tuned", 5),), "searches": Searches(grid={"0": fresh, "2": fresh})}
    )
    both, other = added([old], [new, experimented(target="7")])
    assert [row.name for row in both.table1] == ["fine-tuned", "task vector"]
    assert [one.best.second.hits for one in both.searches.grid.values()] == [30, 20, 30]
    assert other.target == "7"


def circles(svg, tone):
    """Return how many dots of a colour an SVG has."""
    return len(re.findall(rf"<use [^>]*stroke: var\(--{tone}\)", svg))


def test_the_plot_shows_every_point_in_the_page_s_colours():
    grid = [Series("original", "a", [(2, 0.5, 0.4, 0.6), (3, 1.0, 0.9, 1.0)])]
    svg = search_plot(grid, [Series("original", "a", [(0, 1.0, 0.9, 1.0)])])
    assert svg.startswith('<svg class="plot"')
    assert circles(svg, "a") == 4  # two levels, gradient ascent's, the legend
    assert ">gradient<" in svg
    assert ">original<" in svg
    assert "#0102" not in svg
    assert "gradient" not in search_plot(grid, [])


def test_lengths_are_compared_by_the_searches_that_all_of_them_had():
    lines = [line(0, 50, "task vector", 1.0), line(0, 25, "task vector", 2.0)]
    assert [(x, y) for x, y, *_ in worst_by_alpha(lines)] == [(1.0, 0.5), (2.0, 0.25)]
    assert worst_by_alpha([*lines, line(5, 75, "task vector", 2.0)]) == worst_by_alpha(lines)
    assert worst_by_alpha(lines[:1]) == []
    tried = lengths((1.0, 500), (2.0, 500))
    assert ">worst prompt found<" in alphas_plot(tried, lines)
    assert "worst prompt found" not in alphas_plot(tried, lines[:1])
