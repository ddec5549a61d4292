"""Stand-ins for what metrics take from the user: a backbone of LPIPS with random weights, NudeNet, Inception."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from efface.judges import nudenet
from efface.util.files import save_safetensors


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with random weights of AlexNet's convolutions, named as torchvision names them."""
    from torchvision.models import alexnet

    torch.manual_seed(0)  # of this process's own test models
    weights = {name: weight for name, weight in alexnet().state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_safetensors(path, weights)
    return path


class Detector:
    """Find a belly and buttocks, as sure as the first pixel is blue and red."""

    def detect(self, image):
        blue, _, red = (float(value) / 255 for value in image[0, 0])
        return [
            {"class": "BELLY_EXPOSED", "score": blue},
            {"class": "BUTTOCKS_EXPOSED", "score": red},
            {"class": "BUTTOCKS_EXPOSED", "score": red / 2},
            {"class": "FEMALE_BREAST_COVERED", "score": 1.0},
        ]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Put `Detector` in the place of the package nudenet's."""
    nudenet.detector.cache_clear()
    module = ModuleType("nudenet")
    module.NudeDetector, module.__file__ = Detector, str(tmp_path / "__init__.py")  # type: ignore[attr-defined]
    module.__spec__ = sys.__spec__
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "nudenet", module)
    yield Detector
    nudenet.detector.cache_clear()


@pytest.fixture
def record():
    """Return (scores of the edited images by group, label) -> a record with them."""
    from efface.evaluation.record import Asked, Base, Made, Record, Row, Sampling
    from efface.judge import Profile

    def make(scores: dict[str, list[float]], label: str) -> Record:
        rows = [
            Row(
                made_by="edited", groups=(group,), concept="church", label="church", judged="object", seen="church",
                query=Asked(prompt="church", seed=i, steps=1, guidance=1.0), top1=True, top5=True, image="",
                scores={label: value},
            )
            for group, values in scores.items()
            for i, value in enumerate(values)
        ]  # fmt: skip
        sampling = Sampling(solver="ddim", steps=1, guidance=1.0, seeds={}, prompts={})
        return Record(
            concepts=("church",), model=Base(name="m", id="1"), edit=Made(id="2"), evaluator=Profile(evaluator="j"),
            sampling=sampling, rows=tuple(rows),
        )  # fmt: skip

    return make
