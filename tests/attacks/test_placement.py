"""Every attack computes on its model's device, shown without one: on the meta device, which has no values."""

import runpy
from pathlib import Path

import pytest
import torch

from efface import registry
from efface.attack import Target
from efface.concept import Concept
from efface.judge import Judge, Profile
from efface.models.model import Model
from efface.query import Query

TOOLS = runpy.run_path(str(Path(__file__).parents[1] / "one_device.py"))
CHURCH = Concept("church", ("a picture of a church",), keywords=("cross", "building"))
QUERIES = [Query("a picture of a church", 0, steps=2), Query("a picture of a dog", 1, steps=2)]


class Plain(Judge):
    """Sees a church where an image is light; on the images' own device."""

    classes, profile, reads_text = ("church", "house"), Profile(evaluator="plain"), True

    def objects(self, images):
        light = images.mean((1, 2, 3))
        return torch.stack([light, 1 - light], 1)

    def image_features(self, images):
        return images.mean((2, 3))


CASES = {name: (name, {}) for name in registry.names("attacks") if name != "derived"}  # which needs values
CASES |= {  # what else is set, where a value or a solution is needed that these tensors do not have
    "diverse_inversion": ("diverse_inversion", {"constraint": "none"}),
    "latent_inversion": ("latent_inversion", {"iterations": 0}),
    "gradient through eps": ("gradient", {"through": "eps"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_where_the_model_is(case: str, nowhere: Model, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    monkeypatch.setattr(Model, "id", "nowhere")  # a hash needs values
    TOOLS["lists"](monkeypatch)
    name, fields = CASES[case]
    cls = registry.get("attacks", name)
    with TOOLS["OneDevice"]():
        registry.build(cls, **{**cls.QUICK, **fields})(Target(nowhere, Plain(), nowhere), CHURCH, QUERIES, seed=1)
