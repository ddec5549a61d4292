from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.method import Method
from efface.methods.sld import SLD
from efface.models.model import Model
from efface.util.seeds import check_seed


@dataclass(frozen=True)
class Recording(Method):
    """Method that records its arguments."""

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        return Edit(extra={"seed": torch.tensor(seed)}, meta={"own": [c.name for c in (*erase, *preserve)]})


def test_names_and_concepts_are_taken_alike(tiny: Model):
    church, dog = Concept("church", anchor="house"), Concept("dog")
    edit = Recording()(tiny, [church, "dog", dog], preserve="fox", seed=7)
    assert edit.meta["own"] == ["church", "dog", "fox"]
    assert edit.meta["erase"] == [{"name": "church", "anchor": "house"}, {"name": "dog"}]
    assert edit.extra["seed"] == 7


def test_a_methods_own_report_stays_beside_the_provenance(tiny: Model):
    meta = Recording()(tiny, "church").meta
    assert meta["own"] == ["church"]
    assert meta["method"] == "test_method"
    assert meta["base"]["name"] == tiny.name


def test_seeds_are_checked():
    assert check_seed(0) == 0
    assert check_seed(2**63 - 1) == 2**63 - 1
    for seed in (-1, 2**63, True):
        with pytest.raises(BadInput, match="seed"):
            check_seed(seed)


def test_a_preset_can_be_overridden():
    assert SLD.preset("strong", scale=7) == SLD(7, 7.0, 0.025, 0.5, 0.7)
    assert SLD.preset() == SLD()
