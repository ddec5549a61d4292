"""Every trained method on a random model of Stable Diffusion 1.4's size, from checkpoint to edit, within 24 GB."""

import fcntl
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from efface import registry
from efface.methods.finetune.method import FineTune

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRAINED = [name for name in registry.names("methods") if issubclass(registry.get("methods", name), FineTune)]
WEIGHTS = 859_520_964  # of Stable Diffusion 1.4's UNet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ comes with a clone only"),
]


@pytest.fixture(scope="session")
def size() -> Iterator[ModuleType]:
    """Return benchmarks/sd14_size.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import sd14_size  # pyright: ignore[reportMissingImports]

        yield sd14_size


@pytest.fixture
def place(size: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the checkpoint, to one test at a time: two of this size do not fit side by side."""
    import _sd14  # pyright: ignore[reportMissingImports]

    root = tmp_path_factory.getbasetemp()
    root = root.parent if root.name.startswith("popen-") else root  # of all workers
    with open(root / "sd14.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = root / "sd14"
        folder.mkdir(exist_ok=True)
        if not (folder / "whole").exists():
            _sd14.make_checkpoint(folder / "model.safetensors")
            (folder / "whole").touch()
        yield folder


def room(gigabytes: float) -> None:
    free = psutil.virtual_memory().available / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GB of memory, {free:.1f} are free")


def test_load_edit_save_reload(size: ModuleType, place: Path) -> None:
    """The benchmark itself compares weights and predictions bit for bit and fails if they differ."""
    room(8)
    found = size.run("uce", place)
    assert found["peak_gb"] < 8
    assert found["edit_mb"] < 1


def test_every_trained_method_is_measured(size: ModuleType) -> None:
    assert set(size.CASES) == {"uce", *TRAINED}


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_fit(name: str, size: ModuleType, place: Path) -> None:
    room(12 if name in ("esd", "sdd", "surgical", "kpop", "ca") else 18)
    found = size.run(name, place)
    assert found["peak_gb"] < size.LIMIT_GB
    assert len(found["loss"]) == 2
    assert all(math.isfinite(loss) for loss in found["loss"])
    assert 0 < found["parameters"] <= WEIGHTS
