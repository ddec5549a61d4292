import json

import pytest
import torch

from efface.context import Context
from efface.errors import BadInput
from efface.query import Query


def test_the_key_is_stable_json():
    key = Query("a church", seed=3, guidance=5).key
    assert json.loads(key) == {
        "prompt": "a church",
        "seed": 3,
        "steps": 20,
        "guidance": 5.0,
        "solver": "",
        "embeds": None,
    }
    assert key == Query("a church", seed=3, guidance=5.0).key


def test_queries_are_equal_when_their_keys_are():
    x = torch.zeros(1, 16, 32)
    assert Query("a") == Query("a")
    own = Query("a", context=Context(x))
    assert own == Query("a", context=Context(x.clone()))
    assert own != Query("a", context=Context(x + 1))
    assert own != Query("a", context=Context(x, torch.zeros(1, 8)))
    assert Query("a") != "a"
    others = {
        Query("b"),
        Query("a", 1),
        Query("a", steps=5),
        Query("a", guidance=2),
        Query("a", solver="ddim"),
        Query("a"),
    }
    assert len(others) == 6


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"seed": True},
        {"steps": 0},
        {"steps": 1001},
        {"guidance": float("nan")},
        {"guidance": float("inf")},
        {"context": Context(torch.zeros(2, 16, 32))},
    ],
)
def test_values_out_of_range_are_refused(values: dict):
    with pytest.raises(BadInput, match="|".join(values)):
        Query("a", **values)


def test_the_empty_prompt_is_the_unconditional_one():
    assert Query("").prompt == ""
