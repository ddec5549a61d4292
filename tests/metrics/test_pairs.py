"""Metrics of pairs of images against independent implementations: SSIM with a plain window, PSNR, LPIPS."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d

from efface.errors import BadFile, BadInput
from efface.evaluation.lpips import lpips_eud
from efface.metric import Samples
from efface.metrics.lpips import LPIPS
from efface.metrics.psnr import PSNR
from efface.metrics.ssim import SSIM
from efface.util.files import save_safetensors


@pytest.fixture
def pairs() -> Samples:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 32, 32, generator=draws)
    return Samples(x, (x + 0.2 * torch.randn(x.shape, generator=draws)).clamp(0, 1))


def test_ssim_with_a_plain_window_is_the_definition(pairs: Samples) -> None:
    """Means, variances and the covariance over a window around every pixel, borders mirrored; the paper's formula."""
    assert pairs.images is not None
    assert pairs.original is not None
    x, y = (torch.nn.functional.pad(z.double(), (12, 12, 12, 12), "reflect") for z in (pairs.images, pairs.original))

    def mean(z: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(z, 25, 1)

    mx, my = mean(x), mean(y)
    vx, vy, c = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    one, two = 0.01**2, 0.03**2
    known = (2 * mx * my + one) * (2 * c + two) / ((mx**2 + my**2 + one) * (vx + vy + two))
    found = SSIM.preset("all-but-one")(pairs)
    torch.testing.assert_close(found, known.mean((1, 2, 3)).float(), atol=1e-5, rtol=0)
    assert (SSIM()(pairs) - found).abs().max() > 1e-3  # another window is another number
    assert SSIM(25).label == "ssim:all-but-one"
    assert SSIM(7).label == "ssim window=7"


def test_windows_that_cannot_be(pairs: Samples) -> None:
    with pytest.raises(BadInput, match="window must be odd"):
        SSIM(24)
    with pytest.raises(BadInput, match="window 33 is larger than the images, which have 32 px"):
        SSIM(33)(pairs)


def test_psnr_is_the_definition_and_finite_for_equal_images(pairs: Samples) -> None:
    assert pairs.images is not None
    assert pairs.original is not None
    error = (pairs.images - pairs.original).square().mean((1, 2, 3))
    torch.testing.assert_close(PSNR()(pairs), -10 * error.log10(), atol=1e-4, rtol=0)
    assert PSNR()(Samples(pairs.images, pairs.images)).tolist() == [120.0] * 3


def by_hand(path: Path, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return LPIPS 0.1: unit vectors of five layers, squared differences, learned weights of channels, mean."""
    import torchmetrics
    from safetensors.torch import load_file
    from torchvision.models import alexnet

    net = alexnet().eval()
    net.load_state_dict(load_file(path), strict=False)
    heads = torch.load(Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth", "cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((2 * z - 1 - shift[:, None, None]) / scale[:, None, None] for z in (a, b))
    total, k = torch.zeros(len(a)), 0
    for i, layer in enumerate(net.features):
        x, y = layer(x), layer(y)
        if i in (1, 4, 7, 9, 11):
            u, v = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-8) for z in (x, y))
            total += ((u - v) ** 2 * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
            k += 1
    return total.detach()


def test_lpips_is_the_definition_at_its_size(pairs: Samples, backbone: Path) -> None:
    assert pairs.images is not None
    assert pairs.original is not None
    large = [torch.nn.functional.interpolate(x, (64, 64)) for x in (pairs.images, pairs.original)]
    found = LPIPS(weights=str(backbone))(Samples(*large))
    torch.testing.assert_close(found, by_hand(backbone, *large), atol=1e-5, rtol=1e-4)
    assert LPIPS(weights=str(backbone))(pairs).shape == (3,)  # brought to 64 px
    assert LPIPS.preset("kpop").label == "lpips alex 512 px"
    told = LPIPS(weights=str(backbone)).instrument()
    assert told["weights"] == hashlib.sha256(backbone.read_bytes()).hexdigest()[:16]
    assert told["size"] == 64


def test_lpips_without_its_backbone_is_refused(pairs: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        BadInput, match=r"LPIPS needs the weights of its backbone alexnet-owt-7be5be79.pth .*nothing is"
    ):
        LPIPS()(pairs)
    with pytest.raises(BadInput, match=r"nosuch\.safetensors does not exist"):
        LPIPS(weights="nosuch.safetensors")(pairs)
    other = tmp_path / "other.safetensors"
    save_safetensors(other, {"features.0.weight": torch.zeros(1)})
    with pytest.raises(BadFile, match=r"no weights of the backbone alex: features\.0\.weight"):
        LPIPS(weights=str(other))(pairs)
    pickle = tmp_path / "alexnet-owt-7be5be79.pth"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(BadFile, match="not the file that torchvision publishes"):
        LPIPS(weights=str(pickle))(pairs)
    pickle.rename(tmp_path / "mine.pth")
    with pytest.raises(BadFile, match="is a pickle file"):
        LPIPS(weights=str(tmp_path / "mine.pth"))(pairs)


def test_lpips_of_erased_and_of_others(record) -> None:
    found = lpips_eud(
        record({"target": [0.4, 0.6], "unrelated": [0.1, 0.1, 0.1]}, "lpips alex 64 px"), "lpips alex 64 px"
    )
    assert [mean.value for mean in found] == pytest.approx([0.5, 0.1, 0.4])
    assert found.d.error == pytest.approx(found.e.error)
    with pytest.raises(BadInput, match="has no lpips"):
        lpips_eud(record({"target": [0.4]}, "lpips alex 64 px"), "lpips alex 64 px")
