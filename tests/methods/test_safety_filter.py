import copy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadFile, BadInput, UnknownName
from efface.evaluation.evaluate import evaluate
from efface.evaluation.prompts import Plan
from efface.judges import mini as judge_module
from efface.judges import nudenet as nudenet_judge
from efface.judges.mini import judge
from efface.methods import safety_filter
from efface.methods.safety_filter import SafetyFilter
from efface.models.attach import attach
from efface.models.model import Model
from efface.query import Query

CHURCH, NEON = Concept("church"), Concept("neon", kind="style")


def images(n=6):
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def filtered(model, method, erase, pictures):
    return method.start(model, erase).filter(pictures)


def fake(monkeypatch, objects, styles=None):
    """Make the judge return these probabilities (church, house) and (plain, neon) for all images."""
    said = torch.tensor(objects)
    styled = torch.tensor(styles) if styles else torch.tensor([[1.0, 0.0]]).expand(len(said), 2)
    one = SimpleNamespace(size=64, classes=("church", "house"), styles=("plain", "neon"))
    one.objects, one.style_probs = (lambda _: said), (lambda _: styled)
    one.names = {"object": one.classes, "style": one.styles}.__getitem__
    one.texts = lambda kind: judge_module.MiniJudge.texts(one, kind)
    monkeypatch.setattr("efface.judges.mini.judge", lambda *_: one)


def blank(pictures):
    return [not bool(picture.any()) for picture in pictures]


def test_first_choice_or_threshold(tiny, monkeypatch):
    fake(monkeypatch, [[0.51, 0.49], [0.49, 0.51], [0.9, 0.1], [0.0, 1.0]])
    x = images(4)
    assert blank(filtered(tiny, SafetyFilter(), [CHURCH], x)) == [True, False, True, False]
    assert blank(filtered(tiny, SafetyFilter(threshold=0.3), [CHURCH], x)) == [True, True, True, False]
    assert blank(filtered(tiny, SafetyFilter(threshold=0.9), [CHURCH], x)) == [False, False, True, False]
    kept = filtered(tiny, SafetyFilter(), [CHURCH], x)
    assert torch.equal(kept[[1, 3]], x[[1, 3]])  # an image that passes is not touched


def test_any_of_several_concepts_of_both_kinds(tiny, monkeypatch):
    fake(monkeypatch, [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    assert blank(filtered(tiny, SafetyFilter(), [CHURCH, NEON], images(3))) == [True, True, False]
    assert blank(filtered(tiny, SafetyFilter(), [NEON], images(3))) == [False, True, False]


def test_clip_takes_the_nearest_of_all_names(tiny, monkeypatch):
    fake(monkeypatch, [[0.0, 1.0]] * 3)  # what the classifier says does not count
    asked = []
    one = judge_module.judge()

    def zero_shot(_images, texts):
        asked.append(texts)
        return torch.tensor([[0.2, 0.1], [0.1, 0.2], [-0.3, -0.4]])

    one.zero_shot = zero_shot
    assert blank(filtered(tiny, SafetyFilter.preset("mini"), [CHURCH], images(3))) == [True, False, True]
    assert blank(filtered(tiny, SafetyFilter(detector="clip"), [NEON], images(3))) == [False, True, False]
    assert asked == [["a picture of a church", "a picture of a house"], ["a picture", "art in the style of neon"]]
    with pytest.raises(BadInput, match="clip has no threshold: leave it out"):
        SafetyFilter(detector="clip", threshold=0.5)


@pytest.fixture(scope="module")
def mini():
    return Model.load("mini")


@pytest.mark.slow
def test_on_mini_it_blanks_what_its_judge_sees_and_nothing_else(mini, tmp_path, monkeypatch):
    """Saved and loaded, on prompts of the concept, of a relative and of something else."""
    queries = [
        Query(f"a picture of a {name}", seed, 12) for name in ("church", "castle", "guitar") for seed in range(4)
    ]
    SafetyFilter()(mini, CHURCH).save(tmp_path / "filter.safetensors")
    before = mini.generate(queries)
    with Edit.load(tmp_path / "filter.safetensors").applied(mini) as guarded:
        after = guarded.generate(queries)
    seen = judge("mini").objects(before).argmax(1) == judge("mini").classes.index("church")
    assert blank(after) == seen.tolist()
    assert seen[:4].sum() >= 3
    assert not seen[8:].any()
    assert torch.equal(after[~seen], before[~seen])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
def test_attached_to_a_pipeline(mini):
    pipe = copy.copy(mini.pipe)
    attach(SafetyFilter(threshold=0.5)(mini, CHURCH), pipe)
    draw = {"num_inference_steps": 12, "output_type": "pt"}
    church = pipe("a picture of a church", generator=torch.Generator().manual_seed(0), **draw).images
    guitar = pipe("a picture of a guitar", generator=torch.Generator().manual_seed(0), **draw).images
    assert blank([*church, *guitar]) == [True, False]


def test_evaluate_counts_what_gets_through(mini, tmp_path, monkeypatch):
    """Black images show no church; what is not blanked is judged as before."""
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    table = {"church": Concept("church", related=("castle",)), "castle": Concept("castle"), "guitar": Concept("guitar")}
    plan = Plan(steps=8, seeds=(0, 1), related_seeds=(0, 1), target_seeds=(0, 1, 2), implicit_seeds=(), styled_seeds=())
    found = evaluate(mini, SafetyFilter()(mini, CHURCH), CHURCH, table, judge("mini"), plan).summaries
    assert found["target"].before.value > 0.6
    assert found["target"].after.value == 0
    assert found["unrelated"].change.value == 0


class Detector:
    """Find what the first pixel says, as NudeNet reports it: blue first, 0 to 255."""

    def detect(self, image):
        assert image.dtype == np.uint8
        assert image.shape == (64, 64, 3)
        return [{"class": "BELLY_EXPOSED", "score": image[0, 0, 0] / 255}, {"class": "FACE_FEMALE", "score": 1.0},
                {"class": "BUTTOCKS_EXPOSED", "score": image[0, 0, 2] / 255}]  # fmt: skip


@pytest.fixture
def nudenet(monkeypatch):
    """Return a function that puts a detector in the place of NudeNet's, None for no package at all."""

    def put(detector):
        nudenet_judge.detector.cache_clear()
        module = ModuleType("nudenet") if detector else None
        if module:
            module.NudeDetector = detector
        monkeypatch.setitem(sys.modules, "nudenet", module)

    yield put
    nudenet_judge.detector.cache_clear()


def test_nudenet(tiny, nudenet):
    nudenet(Detector)
    x = torch.full((4, 3, 64, 64), 0.1)
    x[1, 0, 0, 0] = 0.5  # red: buttocks
    x[2, 2, 0, 0] = 0.5  # blue: belly
    x[3, 0, 0, 0] = 0.7
    nude = [Concept("nudity", kind="unsafe")]
    by = {p: blank(filtered(tiny, SafetyFilter.preset(p), nude, x)) for p in ("unlearndiff", "rece")}
    assert by == {"unlearndiff": [False, True, True, True], "rece": [False, False, False, True]}
    assert blank(filtered(tiny, SafetyFilter(detector="nudenet"), nude, x)) == [False, True, False, True]


def test_nudenet_that_is_not_there(tiny, nudenet):
    nudenet(None)
    with pytest.raises(BadInput, match=r"pip install .efface.nudenet"):
        SafetyFilter(detector="nudenet")(tiny, "nudity")

    class Broken:
        def __init__(self):
            raise RuntimeError("320n.onnx: no such file")

    nudenet(Broken)
    with pytest.raises(BadFile, match=r"320n\.onnx"):
        SafetyFilter(detector="nudenet")(tiny, "nudity")


def test_bad_input(tiny, monkeypatch):
    for method in ({"threshold": 1.5}, {"threshold": -0.1}, {"threshold": float("nan")}):
        with pytest.raises(BadInput, match="threshold must be from 0 to 1"):
            SafetyFilter(**method)
    with pytest.raises(BadInput, match=r"from 0\.25 to 1"):
        SafetyFilter(detector="nudenet", threshold=0.1)
    with pytest.raises(UnknownName, match="did you mean 'church'"):
        SafetyFilter()(tiny, "churhc")
    with pytest.raises(UnknownName, match="style of the judge"):
        SafetyFilter()(tiny, [Concept("church", kind="style")])
    monkeypatch.setattr(judge("mini"), "size", 8)
    with pytest.raises(BadInput, match="of 8 pixels, this model generates 16"):
        SafetyFilter()(tiny, CHURCH)


def test_making_it_draws_no_random_numbers(tiny):
    judge.cache_clear()
    before = torch.get_rng_state()
    SafetyFilter()(tiny, CHURCH)
    assert torch.equal(torch.get_rng_state(), before)
    assert safety_filter.EXPOSED[0] in safety_filter.WIDE
