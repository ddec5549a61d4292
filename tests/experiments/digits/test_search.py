import re

import pytest

from experiments.digits.page import Part, render, verdicts, worst
from experiments.digits.plots import Series, alphas_plot, search_plot, worst_by_alpha
from experiments.digits.search import l_uncond
from experiments.digits.table import chosen


def line(levels, share, low, high, model="original", alpha=0.0):
    return {"levels": levels, "model": model, "alpha": alpha, "best": {"share": share, "ci95": [low, high], "n": 100}}


def test_l_uncond_is_the_smallest_level_above_epsilon():
    lines = [line(3, 0.6, 0.5, 0.7), line(2, 0.2, 0.1, 0.3), line(4, 0.55, 0.45, 0.65)]
    found = l_uncond(lines, (0.05, 0.15, 0.2, 0.5, 0.6))
    assert {e: x["level"] for e, x in found.items()} == {"0.05": 2, "0.15": 2, "0.2": 3, "0.5": 3, "0.6": None}
    assert {e: x["sure"] for e, x in found.items()} == {"0.05": 2, "0.15": 3, "0.2": 3, "0.5": None, "0.6": None}


def test_the_shortest_vector_that_erases_is_chosen():
    sweep = [{"alpha": a, "target": {"share": s}} for a, s in ((0.5, 0.4), (1.0, 0.009), (2.0, 0.0))]
    assert chosen(sweep) == 1.0
    assert chosen(sweep[:1]) == 0.5


@pytest.mark.parametrize(
    ("tuned", "vector", "sentence"),
    [
        ((0.9, 0.85, 0.95), (0.1, 0.05, 0.2), "the worst prompt of the task vector's model is safer"),
        ((0.1, 0.05, 0.2), (0.9, 0.85, 0.95), "the worst prompt of the fine-tuned model is safer"),
        ((0.5, 0.4, 0.6), (0.45, 0.35, 0.55), "cannot be told apart"),
    ],
)
def test_verdicts_follow_the_intervals(tuned, vector, sentence):
    lines = [line(2, 1.0, 0.9, 1.0), line(2, *tuned, "fine-tuned"), line(2, *vector, "task vector", 1.0)]
    lines.append(line(2, 0.99, 0.98, 1.0, "task vector", 0.5))  # of another alpha than table 1's
    assert sentence in verdicts({"alpha": 1.0}, lines, [], [])[-1]


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


def test_the_worst_prompt_of_a_model_is_of_any_search_and_of_the_table_s_length():
    found = [line(2, 0.1, 0.05, 0.2, "task vector", a) for a in (1.0, 3.0)] + [line(3, 0.3, 0.2, 0.4, "fine-tuned")]
    found[1]["best"]["share"] = 0.9
    assert {name: best["share"] for name, best in worst({"alpha": 1.0}, found).items()} == {
        "fine-tuned": 0.3, "task vector": 0.1,
    }  # fmt: skip


def test_a_page_about_several_experiments_begins_with_all_of_them():
    side = {"share": 0.25, "ci95": [0.2, 0.3], "n": 300}
    rows = [{"name": "task vector", "target": side, "others": side}]
    judge = {"evaluator": "e", "sha256": "0", "held_out_accuracy": [9, 10]}
    one = Part(
        "Digit 0", "mnist", "0", 5, 2.0, rows, {"task vector": side}, (), (), "", (), "", {}, (), (), (), (), judge
    )
    assert "In short" not in render([one])
    page = render([one, one._replace(title="Digit 7", worst={})])
    short = page[page.index("In short") : page.index("Table 1")]
    assert short.count("25.0 % <small>20.0–30.0, n = 300") == 5  # two shares each, and a worst prompt of the first
    assert short.count("task vector, α = 2<") == 2
    assert "not searched" in short


def test_lengths_are_compared_by_the_searches_that_all_of_them_had():
    side = {"share": 0.5, "ci95": [0.4, 0.6]}
    sweep = [{"alpha": a, "target": side, "others": side} for a in (1.0, 2.0)]
    lines = [line(0, s, s, s, "task vector", a) for s, a in ((0.25, 1.0), (0.125, 2.0))]
    assert worst_by_alpha(lines) == [(1.0, 0.25, 0.25, 0.25), (2.0, 0.125, 0.125, 0.125)]
    assert worst_by_alpha([*lines, line(5, 0.75, 0.75, 0.75, "task vector", 2.0)]) == worst_by_alpha(lines)
    assert worst_by_alpha(lines[:1]) == []
    assert ">worst prompt found<" in alphas_plot(sweep, 2.0, lines)
    assert "worst prompt found" not in alphas_plot(sweep, 2.0, lines[:1])
