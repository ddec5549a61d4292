"""Memory of every preset of every trained method at Stable Diffusion 1.4's size, counted on the meta device.

The method's own code runs, preparation and two steps, on tensors without values; each tensor is counted while it lives.
Attention is counted as the fused kernels of a GPU store it: queries, keys, values and output, no maps. What a GPU takes
besides is not counted: the context of the driver (about half a GiB), the buffers of convolutions, and fragmentation.

    python benchmarks/gpu_memory.py                  # some minutes on one core, 2 GB of memory
    python benchmarks/gpu_memory.py --only esd sa
"""

import argparse
import functools
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).resolve().parent
RECORD = HERE / "records" / "gpu_memory.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
READS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero")
SHORT = {
    "steps": 2,
    "ddim_steps": 2,
    "images": 4,
    "replay_images": 4,
    "image_steps": 1,
    "fisher_images": 1,
    "fisher_times": 2,
    "inversion_steps": 2,
}  # counts of equal passes one after the other, which do not change the peak


name_of = functools.cache(str)  # of an operation; it is slow to make


class Counter(TorchDispatchMode):
    """Count the bytes of all meta tensors alive; `peak` is the most since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.now

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results; code that reads a value reads 1, or index 0."""
        if name_of(func).startswith(READS) and args[0].is_meta:
            return {torch.bool: True, torch.long: 0}.get(args[0].dtype, 1.0)
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return args[0].new_empty(1, args[0].dim(), dtype=torch.long)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self.add(leaf)
        return out


class Fused(torch.autograd.Function):
    """Attention as fused kernels store it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Save what the backward pass of the fused kernels reads."""
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        """Return gradients of the right size."""
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


@contextmanager
def fused_attention() -> Iterator[None]:
    """Put `Fused` in the place of torch's attention."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        return Fused.apply(q, k, v)  # pyright: ignore[reportReturnType]

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield


def meta_model(dtype: torch.dtype, tokenizer: Path) -> Any:
    """Return a model of Stable Diffusion 1.4's size without values."""
    from _sd14 import meta_parts
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from efface.models.model import Model

    parts = {name: part.to(dtype).eval() for name, part in meta_parts().items()}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, steps_offset=1, clip_sample=False)
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    words = CLIPTokenizer.from_pretrained(tokenizer)
    return Model(StableDiffusionPipeline(scheduler=scheduler, tokenizer=words, **parts, **rest))


def count(name: str, preset: str, precision: str, tokenizer: Path) -> dict[str, Any]:
    """Run one preset and return what it takes, in GiB."""
    from efface import registry
    from efface.concept import Concept
    from efface.methods.finetune.method import Run

    cls = registry.get("methods", name)
    whole = cls.preset(preset)
    few = {key: min(getattr(whole, key), value) for key, value in SHORT.items() if hasattr(whole, key)}
    method = cls.preset(preset, **few)
    counter, gib = Counter(), 2.0**30
    model = meta_model(PRECISIONS[precision], tokenizer)
    with fused_attention(), counter:
        for weight in model.weights("").values():
            counter.add(weight)
        loaded = counter.now
        run = Run(method, model, (Concept("church", anchor="house"),), (), 0)
        run.autocast = nullcontext  # pyright: ignore[reportAttributeAccessIssue]  # the meta device has none
        loss = method.objective(run)
        prepared = counter.peak
        counter.restart()
        release, run.state.release = run.state.release, lambda: None
        run.descend(loss)
        held = counter.now - loaded
        release()
    return {
        "method": name,
        "preset": preset,
        "precision": precision,
        "batch": method.batch,
        "accumulate": method.accumulate,
        "params": method.params,
        "gradient_checkpointing": method.gradient_checkpointing,
        "million_parameters": round(sum(p.numel() for p in run.weights.values()) / 1e6, 1),
        "model_gib": round(loaded / gib, 2),
        "training_state_gib": round(held / gib, 2),
        "preparing_gib": round(prepared / gib, 2),
        "peak_gib": round(max(prepared, counter.peak) / gib, 2),
    }


def main() -> None:
    """Count the chosen methods and write the record after each."""
    import tempfile

    from _sd14 import make_vocabulary
    from closed_form import surroundings

    from efface import registry
    from efface.methods.finetune.method import FineTune

    trained = [name for name in registry.names("methods") if issubclass(registry.get("methods", name), FineTune)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=trained, choices=trained, metavar="METHOD")
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    old = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    rows = [row for row in old if row["method"] not in given.only]
    with tempfile.TemporaryDirectory() as folder:
        make_vocabulary(tokenizer := Path(folder) / "tokenizer")
        for name, preset, precision in cases(given.only):
            rows.append(count(name, preset, precision, tokenizer))
            print(json.dumps(rows[-1]), flush=True)
            if not given.no_record:
                record = {"benchmark": "gpu_memory", **surroundings(1), "rows": rows}
                RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def cases(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (method, preset, precision): every preset but mini's in float32, the default one in bfloat16 too."""
    from efface import registry

    for name in names:
        cls = registry.get("methods", name)
        for preset in (p for p in cls.PRESETS if not p.startswith("mini")):
            yield name, preset, "fp32"
            if cls.preset(preset) == cls():
                yield name, preset, "bf16"


if __name__ == "__main__":
    main()
