"""FID and KID against their definitions in numpy and scipy; whose features they are is always said."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from efface.errors import BadFile, BadInput
from efface.judge import Judge, Profile
from efface.metric import Samples
from efface.metrics.fid import FID
from efface.metrics.kid import KID

N, DIM = 40, 5


class Seer(Judge):
    """A judge whose image vectors are the first pixels."""

    classes, profile, reads_text = ("a",), Profile(evaluator="seer", input=8), True

    def objects(self, images):
        return images.new_ones(len(images), 1)

    def image_features(self, images):
        return images.flatten(1)[:, :DIM]


@pytest.fixture
def sets() -> Samples:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(N, 3, 8, 8, generator=draws)
    return Samples(0.7 * torch.rand(N, 3, 8, 8, generator=draws) + 0.3 * x, x, judge=Seer())


def vectors(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    assert samples.images is not None
    assert samples.original is not None
    made, original = (x.flatten(1)[:, :DIM].double().numpy() for x in (samples.images, samples.original))
    return made, original


def test_fid_is_the_frechet_distance_of_gaussians(sets: Samples) -> None:
    assert float(FID()(sets)) == pytest.approx(fid(*vectors(sets)), rel=1e-4)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / DIM + 1) ** 3)


def test_kid_of_pairs_leaves_out_a_pairs_own_terms(sets: Samples) -> None:
    made, original = vectors(sets)
    total = 0.0
    for i in range(N):
        for j in range(N):
            if i != j:
                total += kernel(made[i], made[j]) + kernel(original[i], original[j])
                total -= kernel(made[i], original[j]) + kernel(made[j], original[i])
    assert float(KID()(sets)) == pytest.approx(total / (N * (N - 1)), rel=1e-4)
    assert float(KID()(Samples(sets.original, sets.original, judge=Seer()))) == pytest.approx(0, abs=1e-9)


def test_kid_of_subsets_is_repeatable_and_near_that_of_all(sets: Samples) -> None:
    parts = [float(KID(subset=20)(sets)) for _ in range(2)]
    assert parts[0] == parts[1]
    assert parts[0] != float(KID()(sets))
    far = Samples(1 - 0.2 * sets.images, sets.original, judge=Seer())
    assert float(KID(subset=20)(far)) == pytest.approx(float(KID()(far)), rel=0.1)


def test_a_folder_of_images_takes_the_place_of_the_originals(sets: Samples, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for i, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    made, _ = vectors(sets)
    other = drawn.transpose(0, 3, 1, 2).reshape(6, -1)[:, :DIM] / 255
    m = 6
    found = KID(folder=str(tmp_path), subset=6)
    first = torch.randperm(m, generator=torch.Generator().manual_seed(0))  # any order of all six
    assert set(first.tolist()) == set(range(6))
    assert float(FID(folder=str(tmp_path))(sets)) == pytest.approx(fid(made, other), rel=1e-3)
    assert found.label == "kid:judge to a folder"
    assert found.instrument(Seer())["folder"] != FID().instrument(Seer()).get("folder")
    with pytest.raises(BadInput, match="has 0 images"):
        FID(folder=str(tmp_path / "nosuch"))(sets)


def fid(made: np.ndarray, other: np.ndarray) -> float:
    a, b = np.cov(made, rowvar=False), np.cov(other, rowvar=False)
    means = made.mean(0) - other.mean(0)
    return float(means @ means + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


def test_whose_features_is_said_and_one_image_is_no_set(sets: Samples) -> None:
    assert FID().label == "fid:judge"
    assert FID().instrument(Seer())["judge"]["evaluator"] == "seer"
    assert FID.preset("inception").label == "fid:inception"
    assert sets.images is not None
    with pytest.raises(BadInput, match="sets of two images or more"):
        FID()(Samples(sets.images[:1], sets.images[:1], judge=Seer()))
    blind = Seer()
    blind.reads_text = False
    with pytest.raises(BadInput, match="a judge with a CLIP, for its image vectors"):
        KID()(Samples(sets.images, sets.images, judge=blind))


class Extractor(torch.nn.Module):
    """Stand in for torch-fidelity's Inception: it takes bytes, and its vectors are the first pixels."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        if Path(feature_extractor_weights_path).read_bytes() != b"weights":
            raise RuntimeError("invalid magic number")

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (images.flatten(1)[:, :DIM].float() / 255,)


def test_inception_is_the_users_file(sets: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception.pth"
    metric = FID("inception", weights=str(path))
    with pytest.raises(BadInput, match=r"the file of Inception's weights \(.*nothing is downloaded\)"):
        metric(sets)
    path.write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(BadInput, match="the package torch-fidelity"):
        metric(sets)
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.__spec__ = sys.__spec__
    module.FeatureExtractorInceptionV3 = Extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    made, original = ((x * 255).round() / 255 for x in map(torch.from_numpy, vectors(sets)))
    assert float(metric(sets)) == pytest.approx(fid(made.numpy(), original.numpy()), rel=1e-3)
    told = metric.instrument(Seer())
    assert "judge" not in told
    assert len(told["weights"]) == 16
    path.write_bytes(b"other")
    assert metric.instrument()["weights"] != told["weights"]
    with pytest.raises(BadFile, match="not a file of Inception's weights: invalid magic number"):
        metric(sets)
