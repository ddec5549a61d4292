"""On a GPU, at Stable Diffusion 1.4's size: every method by its default preset for two steps, in float32 and bfloat16.

The weights are random, so what is tested is that it runs, fits, and computes where it should. On a machine without
CUDA these tests are skipped; `tests/methods/test_placement.py` and `benchmarks/gpu_memory.py` show there what can be
shown without one.

    python -m pytest tests/cuda -n 0
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efface import registry
from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.method import FineTune
from efface.models.model import Model
from efface.query import Query

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROOM = 1.3  # of the counted memory: buffers of convolutions, fragmentation
SHORT = {
    "steps": 2,
    "ddim_steps": 3,
    "images": 2,
    "replay_images": 2,
    "image_steps": 2,
    "fisher_images": 1,
    "fisher_times": 2,
    "inversion_steps": 2,
}
NAMES = registry.names("methods")
TRAINED = [name for name in NAMES if issubclass(registry.get("methods", name), FineTune)]
ERASE, PRESERVE = (Concept("church", anchor="house"),), (Concept("dog"),)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ comes with a clone only"),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random checkpoint of Stable Diffusion 1.4's size, with a tokenizer beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import _sd14  # pyright: ignore[reportMissingImports]

        path = tmp_path_factory.mktemp("sd14") / "model.safetensors"
        _sd14.make_checkpoint(path)
    return path


def on_gpu(checkpoint: Path, dtype: torch.dtype) -> Model:
    return Model.load(checkpoint, "cuda", dtype, checkpoint.parent / "tokenizer")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Model:
    """Return a random model of Stable Diffusion 1.4's size on the GPU."""
    dtype = getattr(torch, request.param)
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU does not compute in bfloat16")
    return on_gpu(checkpoint, dtype)


def short(name: str, **values: object):
    """Return the default preset of a method with few passes of every kind."""
    method = registry.get("methods", name)()
    few = {key: min(getattr(method, key), value) for key, value in SHORT.items() if hasattr(method, key)}
    return replace(method, **few, **values)


def counted(name: str, dtype: torch.dtype) -> float:
    """Return the GiB that `benchmarks/gpu_memory.py` counted for the default preset, infinite if it did not."""
    record = json.loads((BENCHMARKS / "records" / "gpu_memory.json").read_text())
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    default = registry.get("methods", name)().preset_name
    rows = [r for r in record["rows"] if (r["method"], r["preset"], r["precision"]) == (name, default, precision)]
    return rows[0]["peak_gib"] if rows else math.inf


@pytest.mark.parametrize("name", NAMES)
def test_the_default_preset_runs_on_the_gpu(name: str, model: Model):
    seen: set[str] = set()
    hook = model.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(
            t.device.type for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor) and t.dim()
        ),
        with_kwargs=True,
    )
    torch.cuda.reset_peak_memory_stats()
    try:
        edit = short(name)(model, ERASE, PRESERVE)
        if name in TRAINED:
            peak = torch.cuda.max_memory_allocated() / 2**30
            assert all(math.isfinite(loss) for loss in edit.meta["training"]["loss"])
            assert peak < ROOM * counted(name, model.dtype)
            assert all(d.device.type == "cpu" and d.dtype == torch.float32 for d in edit.delta.values())
        assert edit.guards or edit.names
        with edit.applied(model) as edited:
            assert {w.device.type for w in edited.weights("").values()} == {"cuda"}
            images = edited.generate([Query("a church", 0, 2)])
        assert bool(torch.isfinite(images).all())
    finally:
        hook.remove()
    assert seen == {"cuda"}


@pytest.mark.parametrize("name", TRAINED)
def test_autocast_trains_close_to_float32(name: str, model: Model):
    """Two steps of plain SGD: the direction of the edit must be that of float32."""
    if model.dtype != torch.float32:
        pytest.skip("autocast is for models in float32")
    edits = [
        short(name, optimizer="sgd", lr=0.1, bf16=bf16, clip=1.0, params="unet.mid_block*attn2*", accumulate=2)(
            model, ERASE
        )
        for bf16 in (False, True)
    ]
    flat = [torch.cat([edit.delta[key].flatten() for key in sorted(edit.delta)]) for edit in edits]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.5


def test_float16_is_refused(checkpoint: Path):
    with pytest.raises(BadInput, match="bf16"):
        short("esd")(on_gpu(checkpoint, torch.float16), ERASE)
