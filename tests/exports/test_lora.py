"""LoRA exports do in diffusers what the edit does, and a file that does not is never left behind."""

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit
from efface.export import export_edit
from efface.exporting.base import open_base
from efface.exports.diffusers_lora import DiffusersLoRA
from efface.exports.kohya_lora import KohyaLoRA
from efface.util.files import load_safetensors

tiny_ = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))
PAIRS = [
    ("tiny", "diffusers-lora"), ("tiny", "kohya-lora"), ("tiny_xl", "diffusers-lora"), ("tiny_xl", "kohya-lora"),
    ("flux", "diffusers-lora"), ("sd3", "diffusers-lora"),
]  # fmt: skip


def pipe_of(name: str, request: pytest.FixtureRequest) -> Any:
    """Return a tiny pipeline by name."""
    return getattr(tiny_, name)() if name in ("flux", "sd3") else request.getfixturevalue(name).pipe


def width(pipe: Any) -> int:
    """Return the width of a pipeline's texts."""
    config = getattr(pipe, tiny_.part_of(pipe)).config
    return config.get("joint_attention_dim") or config["cross_attention_dim"]


def mapped(pipe: Any, **options: Any) -> Edit:
    """Return an edit of all weights that read the text."""
    return tiny_.text_map(tiny_.text_weights(pipe), width(pipe), **options)


def loaded(pipe: Any, path: Path) -> Tensor:
    """Return the output of a denoiser into which diffusers loaded a LoRA."""
    pytest.importorskip("peft")
    pipe = tiny_.twin(pipe)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return tiny_.output(getattr(pipe, tiny_.part_of(pipe)))


def close(found: Tensor, wanted: Tensor) -> bool:
    """Return whether outputs agree to 1e-6 of their size."""
    return bool((found - wanted).abs().max() <= 1e-6 * wanted.abs().max())


@pytest.mark.filterwarnings("ignore")  # of diffusers, about text encoders without a LoRA
@pytest.mark.parametrize(("name", "to"), PAIRS)
def test_a_text_map_is_exact_in_diffusers(name: str, to: str, request, tmp_path: Path):
    pipe = pipe_of(name, request)
    edit, path = mapped(pipe, rank=3), tmp_path / "edit.safetensors"
    report = export_edit(edit, to, path, pipe, dtype="fp32", compare="weights")
    wanted = tiny_.edited_output(pipe, edit)
    assert close(loaded(pipe, path), wanted)
    assert not close(wanted, tiny_.output(getattr(tiny_.twin(pipe), tiny_.part_of(pipe))))
    assert (report.rank, report.size, set(report.weights)) == (3, path.stat().st_size, set(edit.names))
    assert report.error <= 1e-6
    stored, _ = load_safetensors(path)
    downs = [value for key, value in stored.items() if key.endswith(("lora_A.weight", "lora_down.weight"))]
    assert all(torch.equal(down, downs[0]) for down in downs), "down is the same for all layers"
    alphas = {float(value) for key, value in stored.items() if key.endswith(".alpha")}
    assert alphas == ({3.0} if to == "kohya-lora" else set())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "to"), [("tiny", "kohya-lora"), ("tiny_xl", "kohya-lora"), ("flux", "diffusers-lora")]
)
def test_every_matrix_and_convolution_gets_its_own_difference(name: str, to: str, request, tmp_path: Path):
    """A dense edit of all of them, of rank 1 to 3 in turn, beside a text map: the ranks add up, and all are read."""
    pipe = pipe_of(name, request)
    generator = torch.Generator().manual_seed(1)
    delta, ranks, texts = {}, [], tiny_.text_weights(pipe)
    for i, (weight, shape) in enumerate(tiny_.matrices(pipe).items()):
        rank = min(1 + i % 3, shape[0])
        up = torch.randn(shape[0], rank, generator=generator)
        down = torch.randn(rank, int(np.prod(shape[1:])), generator=generator)
        delta[weight] = (0.01 * up @ down).reshape(shape)
        ranks.append(rank + (4 if weight in texts else 0))
    edit = Edit(delta=delta) + mapped(pipe) + 0.5 * mapped(pipe, seed=7)
    path = tmp_path / "edit.safetensors"
    report = export_edit(edit, to, path, pipe, dtype="fp32", error=1e-5, compare="weights")
    assert report.rank == max(ranks)
    assert report.error < 2e-5
    assert (loaded(pipe, path) - tiny_.edited_output(pipe, edit)).norm() < 1e-4 * tiny_.edited_output(pipe, edit).norm()


def test_half_precision_is_a_small_error_that_is_reported(tiny, tmp_path: Path):
    edit = mapped(tiny.pipe)
    sizes, errors = [], []
    for dtype in ("fp32", "fp16", "bf16"):
        report = export_edit(
            edit, "kohya-lora", tmp_path / f"{dtype}.safetensors", tiny.pipe, dtype=dtype, compare="weights"
        )
        sizes.append(report.size)
        errors.append(report.error)
    assert errors[0] < 1e-6 < errors[1] < 1e-3 < errors[2] < 1e-2
    assert sizes[0] > sizes[1] == pytest.approx(sizes[2], rel=0.01)


def test_alpha_is_exact_in_every_precision(tiny2, tmp_path: Path):
    """bf16 has no number between 256 and 258, so that alpha must not be stored in it."""
    edit, path = mapped(tiny2.pipe), tmp_path / "x.safetensors"
    export_edit(edit, "kohya-lora", path, tiny2.pipe, dtype="bf16", compare="weights")
    stored, _ = load_safetensors(path)
    assert {v.dtype for k, v in stored.items() if k.endswith(".alpha")} == {torch.float32}
    assert {v.dtype for k, v in stored.items() if not k.endswith(".alpha")} == {torch.bfloat16}


def test_a_dense_edit_is_cut_at_the_stated_error(tiny, tmp_path: Path):
    names = [name for name in tiny.weights() if name.endswith("attn2.to_q.weight")][:3]
    edit = tiny_.dense({name: tuple(tiny.weights()[name].shape) for name in names})
    path = tmp_path / "cut.safetensors"
    report = export_edit(edit, "diffusers-lora", path, tiny.pipe, dtype="fp32", error=0.3, compare="weights")
    values = {name: np.linalg.svd(edit.delta[name].numpy(), compute_uv=False) for name in names}
    tails = {name: np.sqrt(np.cumsum(one[::-1] ** 2)[::-1]) / np.linalg.norm(one) for name, one in values.items()}
    smallest = max(int((tail > 0.3).sum()) for tail in tails.values())
    assert report.rank == smallest
    for name in names:
        own = int((tails[name] > 0.3).sum())
        assert report.weights[name] == pytest.approx(tails[name][own], abs=1e-5)
        assert report.weights[name] <= 0.3
    fixed = export_edit(edit, "diffusers-lora", path, tiny.pipe, dtype="fp32", rank=5, compare="weights")
    assert {name: pytest.approx(tails[name][5], abs=1e-5) for name in names} == fixed.weights
    left_out, whole = (sum((one[k:] ** 2).sum() for one in values.values()) for k in (5, 0))
    assert fixed.error == pytest.approx(np.sqrt(left_out / whole), abs=1e-5)


def test_a_text_map_is_cut_to_the_nearest_shared_directions(tiny, tmp_path: Path):
    """Of all maps whose right factor has k rows, the one over all weights stacked (Eckart and Young) is the nearest."""
    edit, path = mapped(tiny.pipe, rank=8), tmp_path / "cut.safetensors"
    differences = [value.numpy() for value in edit.dense(tiny).values()]
    values = np.linalg.svd(np.concatenate(differences), compute_uv=False)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / np.linalg.norm(values)
    for given, rank in (({"rank": 3}, 3), ({"error": 0.4}, int((tails > 0.4).sum())), ({}, 8)):
        report = export_edit(edit, "kohya-lora", path, tiny.pipe, dtype="fp32", compare="weights", **given)
        assert report.rank == rank
        assert report.error == pytest.approx(tails[rank] if rank < 8 else 0.0, abs=1e-5)


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
WRONG: dict[str, tuple[Change, str]] = {
    "another alpha": (lambda t: {k: v * 2 if k.endswith("alpha") else v for k, v in t.items()}, "is not the edit"),
    "the other sign": (lambda t: {k: -v if "lora_up" in k else v for k, v in t.items()}, "is not the edit"),
    "columns in another order": (
        lambda t: {k: v.flip(-1) if "lora_down" in k else v for k, v in t.items()},
        "not the edit",
    ),
    "transposed": (
        lambda t: {k: v.T.reshape(v.shape) if "lora_down" in k else v for k, v in t.items()},
        "not the edit",
    ),
    "a layer too few": (lambda t: {k: v for k, v in t.items() if "mid_block" not in k}, "no difference of unet.mid"),
    "zeros": (lambda t: {k: v * 0 if "lora_up" in k else v for k, v in t.items()}, "changes nothing"),
    "zeros in a layer": (lambda t: {k: v * 0 if "mid_block" in k else v for k, v in t.items()}, "is not the edit"),
    "one factor": (lambda t: {k: v for k, v in t.items() if not ("mid" in k and "lora_up" in k)}, "one factor only"),
    "factors swapped": (
        lambda t: {k: t[k.replace("_down.", "_up.")] if "lora_down" in k else v for k, v in t.items()},
        "has factors",
    ),
    "PEFT's ends": (lambda t: {k.replace("lora_down", "lora_A"): v for k, v in t.items()}, "A1111 would pass over"),
    "PEFT's names": (lambda t: {k.replace("lora_unet_", "unet."): v for k, v in t.items()}, "ComfyUI would pass over"),
    "no such layer": (lambda t: {k.replace("mid_block", "mid_block_9"): v for k, v in t.items()}, "pass over"),
    "a layer too many": (
        lambda t: t | {k.replace("to_k", "to_v"): v for k, v in t.items() if "mid_block" in k},
        "which the edit does not change",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_the_edit_is_refused_and_removed(what: str, tiny, tmp_path: Path):
    change, says = WRONG[what]

    @dataclass(frozen=True)
    class Broken(KohyaLoRA):
        def tensors(self, found, base):
            return change(super().tensors(found, base))

    edit, base = mapped(tiny.pipe).prune(without="unet.mid_block*to_v.weight"), open_base(tiny)
    with pytest.raises(BadEdit, match=says):
        Broken(dtype="fp32")(edit, base, tmp_path / "broken.safetensors", compare="weights")
    assert list(tmp_path.iterdir()) == []
    KohyaLoRA(dtype="fp32")(edit, base, tmp_path / "whole.safetensors", compare="weights")


@pytest.mark.filterwarnings("ignore")
def test_outputs_show_what_the_weights_cannot(tiny, tmp_path: Path, monkeypatch):
    """If diffusers read the file otherwise than the table says, the outputs would tell: here it reads nothing."""
    pytest.importorskip("peft")
    edit, path = mapped(tiny.pipe), tmp_path / "edit.safetensors"
    report = export_edit(edit, "diffusers-lora", path, tiny.pipe, compare="outputs")
    assert "outputs of the denoiser" in report.checks[-1]
    monkeypatch.setattr(type(tiny.pipe), "load_lora_weights", lambda *args, **options: None)
    with pytest.raises(BadEdit, match="changes nothing"):
        export_edit(edit, "diffusers-lora", tmp_path / "silent.safetensors", tiny.pipe, compare="outputs")
    monkeypatch.undo()
    load = type(tiny.pipe).load_lora_weights

    def half(pipe, *args, **options):
        load(pipe, *args, **options)
        pipe.set_adapters(pipe.get_active_adapters(), 0.5)

    monkeypatch.setattr(type(tiny.pipe), "load_lora_weights", half)
    with pytest.raises(BadEdit, match="something else than the edit"):
        export_edit(edit, "diffusers-lora", tmp_path / "half.safetensors", tiny.pipe, compare="outputs")
    assert [file.name for file in tmp_path.iterdir()] == ["edit.safetensors"]


def test_the_header_says_what_the_edit_was_made_for(tiny, tmp_path: Path):
    from efface.methods.uce import UCE

    edit = UCE()(tiny, ["church"])
    path = tmp_path / "church.safetensors"
    export_edit(edit, "kohya-lora", path, tiny, compare="weights")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    about = json.loads(meta["efface_export"])
    assert about["id"] == edit.id
    assert (about["method"], about["erase"][0]["name"], about["base"]["id"]) == ("uce", "church", tiny.id)
    assert meta["ss_base_model_version"] == "sd_v1"


def test_the_model_in_memory_stays_as_it_is(tiny, tmp_path: Path):
    """The fixture compares all weights afterwards; here, that no adapter stays in the pipeline."""
    DiffusersLoRA()(mapped(tiny.pipe), open_base(tiny), tmp_path / "edit.safetensors")
    assert not any("lora" in name for name, _ in tiny.pipe.unet.named_modules())
    assert tiny.pipe.text_encoder is not None
