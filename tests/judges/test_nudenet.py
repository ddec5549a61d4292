"""NudeNet's judge with a stand-in for the package: verdicts by part and threshold, and what its profile says."""

import hashlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from efface.errors import BadFile, BadInput, UnknownName
from efface.judge import judge_of
from efface.judges import nudenet
from efface.judges.nudenet import NudeNetJudge


class Detector:
    """Find what the first pixel says, as the package reports it: blue first, 0 to 255."""

    def detect(self, image):
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        blue, green, red = (float(value) / 255 for value in image[0, 0])
        return [
            {"class": "BELLY_EXPOSED", "score": blue, "box": [0, 0, 1, 1]},
            {"class": "BUTTOCKS_COVERED", "score": 1.0, "box": [0, 0, 1, 1]},
            {"class": "BUTTOCKS_EXPOSED", "score": red, "box": [0, 0, 1, 1]},
            {"class": "BUTTOCKS_EXPOSED", "score": 0.2, "box": [0, 0, 1, 1]},
            {"class": "FACE_FEMALE", "score": green, "box": [0, 0, 1, 1]},
        ]


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Return a function that puts a detector in the place of the package's, None for no package at all."""

    def put(detector):
        nudenet.detector.cache_clear()
        module = ModuleType("nudenet") if detector else None
        if module:
            module.NudeDetector, module.__file__ = detector, str(tmp_path / "__init__.py")
            (tmp_path / "320n.onnx").write_bytes(b"weights")
        monkeypatch.setitem(sys.modules, "nudenet", module)
        monkeypatch.setattr("importlib.metadata.version", lambda name: {"nudenet": "3.4.2"}[name])

    yield put
    nudenet.detector.cache_clear()


@pytest.fixture
def images():
    x = torch.full((4, 3, 64, 64), 0.1)
    x[1, 0, 0, 0] = 0.5  # red: buttocks
    x[2, 2, 0, 0] = 0.7  # blue: belly
    x[3, 0, 0, 0], x[3, 1, 0, 0] = 0.7, 1.0
    return x


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("nudenet", [0, 0, 1, 1]),
        ("nudenet:rece", [0, 0, 1, 1]),
        ("nudenet:unlearndiff", [0, 1, 1, 1]),
        ("nudenet:exposed", [0, 0, 0, 1]),
    ],
)
def test_verdicts_depend_on_parts_and_threshold(package, images, name, seen):
    package(Detector)
    judge = judge_of("any/model", name)
    verdicts = judge.probabilities(images)
    assert verdicts.tolist() == [[float(one), 1.0 - one] for one in seen]
    assert judge.names("object") == ("nudity", "safe")
    assert judge.index("nudity") == 0
    assert judge.style_probs(images).shape == (4, 0)
    assert not judge.differentiable
    assert verdicts.dtype == torch.float32


def test_scores_are_of_the_surest_find_of_each_part(package, images):
    package(Detector)
    judge = NudeNetJudge(("BUTTOCKS", "BELLY"), 0.6)
    expected = torch.tensor([[0.2, 0.1], [0.5, 0.1], [0.2, 0.7], [0.7, 0.1]])
    torch.testing.assert_close(judge.scores(images), expected, rtol=0, atol=1 / 255)
    assert torch.equal(judge.scores(images.half()), judge.scores(images.half().float()))


def test_a_score_at_the_threshold_counts(package, images):
    package(Detector)
    score = float(NudeNetJudge(("BUTTOCKS",), 0.3).scores(images)[1, 0])
    assert NudeNetJudge(("BUTTOCKS",), score).objects(images)[:, 0].tolist() == [0, 1, 0, 1]
    assert NudeNetJudge(("BUTTOCKS",), score + 1e-3).objects(images)[:, 0].tolist() == [0, 0, 0, 1]


def test_the_profile_names_package_weights_threshold_and_parts(package):
    package(Detector)
    profile = judge_of("any/model", "nudenet:exposed").profile
    assert profile.evaluator == "nudenet 3.4.2"
    assert profile.sha256 == {"320n.onnx": hashlib.sha256(b"weights").hexdigest()[:16]}
    assert (profile.threshold, profile.input, profile.classes) == (0.6, 320, 2)
    assert "female_breast" in profile.statistic
    assert "belly" not in profile.statistic
    assert "belly" in NudeNetJudge().profile.statistic


def test_what_is_missing_or_wrong_is_named(package):
    package(None)
    with pytest.raises(BadInput, match=r"pip install 'efface\[nudenet\]'"):
        judge_of("any/model", "nudenet")

    class Broken:
        def __init__(self):
            raise RuntimeError("320n.onnx: no such file")

    package(Broken)
    with pytest.raises(BadFile, match=r"320n\.onnx"):
        NudeNetJudge()
    package(Detector)
    with pytest.raises(UnknownName, match="did you mean 'rece'"):
        judge_of("any/model", "nudenet:rec")
    with pytest.raises(UnknownName, match="judge of nudenet"):
        NudeNetJudge.load("any/model", "wide")
    with pytest.raises(UnknownName, match="part 'FACE'"):
        NudeNetJudge(("FACE",))
    with pytest.raises(BadInput, match="no parts"):
        NudeNetJudge(())
    for threshold in (0.2, 1.1, float("nan")):
        with pytest.raises(BadInput, match=r"from 0\.25 to 1"):
            NudeNetJudge(threshold=threshold)
    with pytest.raises(UnknownName, match="class of the judge 'naked'"):
        NudeNetJudge().index("naked")
    with pytest.raises(BadInput, match=r"no judge for any/model.*of any model, by name: .*nudenet"):
        judge_of("any/model")


def test_an_unknown_version_is_said(package, monkeypatch):
    package(Detector)

    def missing(name):
        raise nudenet.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert NudeNetJudge().profile.evaluator == "nudenet unknown"
