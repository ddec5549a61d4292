"""What every kind of file is, from its headers; and whether it fits a model."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efface.edits.key import make_key
from efface.errors import BadEdit, BadFile, BadInput, BadModel
from efface.export import export_edit
from efface.finding import Finding
from efface.inspection.inspect import inspect
from efface.methods.negative import NegativePrompt
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.query import Query
from efface.util.files import save_safetensors

own = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "exports" / "tiny.py")))


def test_an_edit(tiny, tmp_path: Path):
    edit, path = UCE(rows="last")(tiny, ["church"], ["dog"]), tmp_path / "edit.safetensors"
    edit.save(path)
    found = inspect(path)
    assert (found.kind, found.share, found.fits) == ("edit", 1.0, None)
    assert found.made["erase"] == ["church"]
    assert found.made["preserve"] == ["dog"]
    assert (found.made["method"], found.made["id"]) == ("uce", edit.id)
    assert {group.block: (group.weights, group.how) for group in found.changes} == {
        "down": (2, "rank 1"), "mid": (2, "rank 1"), "up": (4, "rank 1"),
    }  # fmt: skip
    assert found.family == "Stable Diffusion 1.x and 2.x"
    assert json.loads(json.dumps(found.to_json()))["changes"][0]["kinds"] == ["attn2_to_k", "attn2_to_v"]


def test_combinations_and_guards(tiny, tmp_path: Path):
    path = tmp_path / "both.safetensors"
    both = UCE()(tiny, ["church"], ["dog"]) + 0.5 * UCE()(tiny, ["wolf"]) + NegativePrompt()(tiny, ["cat"])
    both.save(path)
    made = inspect(path).made
    assert made["combination"] == "uce:paper-2023(church) + 0.5*uce:paper-2023(wolf) + negative(cat)"
    assert "fields" not in made
    assert (made["erase"], made["preserve"]) == (["church", "wolf", "cat"], ["dog"])
    assert "acts while images are generated: negative" in inspect(path).notes
    part = both.prune(only="mid")
    part.save(path)
    assert inspect(path).share == 0.25
    dense = own.dense({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 32)})
    (part + dense).save(path)
    how = {group.how: group.weights for group in inspect(path).changes}
    assert sorted(how.values()) == [1, 1]
    assert sum(one.startswith("dense + rank") for one in how) == 1


def test_one_edit_at_half_strength_says_how_it_was_made(tiny, tmp_path: Path):
    edit, path = UCE()(tiny, ["church"], seed=3), tmp_path / "half.safetensors"
    (0.5 * edit).save(path)
    made = inspect(path).made
    assert made["combination"] == "0.5*uce:paper-2023(church)"
    assert (made["method"], made["seed"], made["fields"]) == ("uce", 3, edit.meta["fields"])
    (-1 * (edit + UCE()(tiny, ["dog"]))).save(path)
    assert inspect(path).made["combination"] == "-1*(uce:paper-2023(church) + uce:paper-2023(dog))"
    dog, house = UCE()(tiny, ["dog"]), UCE()(tiny, ["house"])
    (edit - (dog + house)).save(path)
    names = "uce:paper-2023(dog) + uce:paper-2023(house)"
    assert inspect(path).made["combination"] == f"uce:paper-2023(church) - ({names})"
    edit.prune(only="mid", without="to_k").save(path)
    assert inspect(path).made["combination"] == "prune(uce:paper-2023(church); only mid; without to_k)"


def test_it_names_the_format_that_the_family_has(tiny, tiny_each, tmp_path: Path):
    for model, to in ((tiny, "kohya-lora"), (tiny_each, "diffusers-lora")):
        UCE()(model, ["church"]).save(tmp_path / "edit.safetensors")
        assert (
            f"exported to a LoRA exactly (efface export --to {to})" in inspect(tmp_path / "edit.safetensors").notes[0]
        )


def test_whether_an_edit_fits(tiny, tiny_xl, tmp_path: Path):
    path = tmp_path / "edit.safetensors"
    UCE()(tiny, ["church"]).save(path)
    assert inspect(path, tiny).fits is True
    found = inspect(path, tiny_xl)
    assert found.fits is False
    assert "another architecture" in found.notes[-1]
    changed = Model(own.twin(tiny.pipe))
    with torch.no_grad():
        for weight in changed.pipe.unet.parameters():
            weight += 0.1
    assert inspect(path, changed).fits is False
    assert "any_base applies it all the same" in inspect(path, changed).notes[-1]


def test_a_key_and_a_finding(tmp_path: Path):
    about = {"mechanism": "concat", "where": "mid"}
    path = tmp_path / "key.safetensors"
    make_key({"prompt": torch.ones(1, 2, 8)}, ["church"], about).save(path)
    found = inspect(path)
    assert found.kind.startswith("key")
    assert "opens church" in found.notes
    Finding((Query("a church"), Query("a chapel")), scores=(1.0, 0.5), success=(True, False)).save(path)
    assert inspect(path).kind == "finding of an attack"
    assert inspect(path).notes == ("2 queries, 1 of 2 succeed",)


ALL = {"diffusers", "ComfyUI", "A1111"}
EXPORTED = [  # (model, format, family, how the keys are named, the tools)
    ("tiny", "kohya-lora", "Stable Diffusion 1.x", "kohya's names, blocks of diffusers", ALL),
    ("tiny_xl", "kohya-lora", "SDXL", "kohya's names, blocks of the original", ALL),
    ("tiny_xl", "diffusers-lora", "SDXL", "PEFT's names", {"diffusers"}),
    ("tiny", "diff", "Stable Diffusion 1.x", "kohya's names, blocks of diffusers", {"ComfyUI", "A1111"}),
    ("flux", "diffusers-lora", "FLUX.1", "PEFT's names", {"diffusers", "ComfyUI"}),
    ("sd3", "diffusers-lora", "SD3", "PEFT's names", {"diffusers", "ComfyUI"}),
]


@pytest.mark.parametrize(
    ("name", "to", "family", "layout", "tools"), EXPORTED, ids=[f"{name}-{to}" for name, to, *_ in EXPORTED]
)
def test_what_efface_exports(name: str, to: str, family: str, layout: str, tools: set[str], request, tmp_path: Path):
    pipe = getattr(own, name)() if name in ("flux", "sd3") else request.getfixturevalue(name).pipe
    config = getattr(pipe, own.part_of(pipe)).config
    edit = own.text_map(own.text_weights(pipe), config.get("joint_attention_dim") or config.cross_attention_dim)
    path = tmp_path / "x.safetensors"
    export_edit(edit, to, path, pipe, compare="weights")
    found = inspect(path)
    assert found.kind == ("full differences" if to == "diff" else "LoRA")
    assert found.family.startswith(family)
    assert found.layout.startswith(layout)
    assert set(found.readers) == tools
    assert sum(group.weights for group in found.changes) == len(edit.names)
    assert {group.how for group in found.changes} == ({"full difference"} if to == "diff" else {"rank 2"})
    assert inspect(path, pipe).fits is True
    assert inspect(path, own.sd3() if name != "sd3" else own.flux()).fits is (name in ("flux", "sd3"))


SD = "Stable Diffusion 1.x and 2.x"
BLOCK = "attentions_0_transformer_blocks_0_attn2_to_k"
FOREIGN = {  # LoRA of other programs, at full size in the dimension that tells: (modules with their sizes, family)
    "kohya sd": ({f"lora_unet_down_blocks_1_{BLOCK}": (768, 640)}, SD),
    "kohya xl": ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (2048, 640)}, "SDXL"),
    "kohya flux": ({"lora_unet_double_blocks_0_img_attn_proj": (3072, 3072)}, "FLUX.1"),
    "peft flux": ({"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}, "FLUX.1"),
    "peft sd3": ({"transformer.context_embedder": (4096, 1536)}, "SD3"),
    "peft flux text": ({"transformer.context_embedder": (4096, 3072)}, "FLUX.1"),
    "unknown": ({"transformer.context_embedder": (64, 64)}, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_the_family_of_a_foreign_lora(what: str, tmp_path: Path):
    modules, family = FOREIGN[what]
    path, tensors = tmp_path / "x.safetensors", {}
    for module, (inner, outer) in modules.items():
        ends = ("lora_A", "lora_B") if "." in module else ("lora_down", "lora_up")
        tensors |= {
            f"{module}.{ends[0]}.weight": torch.ones(4, inner),
            f"{module}.{ends[1]}.weight": torch.ones(outer, 4),
        }
        if "." not in module:
            tensors[f"{module}.alpha"] = torch.tensor(1.0, dtype=torch.bfloat16)
    save_safetensors(path, tensors, {"format": "pt"})
    found = inspect(path)
    assert found.family == family
    assert found.notes == (() if "." in next(iter(modules)) else ("scale (alpha / rank): 0.25",))
    if what == "kohya flux":
        assert found.readers == ("ComfyUI",)


def test_checkpoints_and_folders(
    single_file: Path, single_file_xl: Path, folder: Path, folder_xl: Path, tmp_path: Path
):
    for path, kind, family in (
        (single_file, "checkpoint in the original layout", "Stable Diffusion 1.x and 2.x"),
        (single_file_xl, "checkpoint in the original layout", "SDXL"),
        (folder, "diffusers folder", "Stable Diffusion 1.x and 2.x"),
        (folder_xl, "diffusers folder", "SDXL"),
    ):
        found = inspect(path)
        assert (found.kind, found.family) == (kind, family)
        model = Model.load(folder if family != "SDXL" else folder_xl)
        size = sum(w.numel() for w in model.weights().values())
        assert next(g for g in found.changes if g.block in ("unet", "denoiser")).values == size
        with pytest.raises(BadInput, match="not applied to a model"):
            inspect(path, folder)
    part = inspect(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert part.kind.startswith("part of a model")
    own.flux().save_pretrained(tmp_path / "flux")
    assert inspect(tmp_path / "flux").family == "FLUX.1"


def test_records(tmp_path: Path):
    path = tmp_path / "record.json"
    plain: dict[str, Any] = {"format": 2, "concepts": ["church"], "edit": {"id": "ab", "method": "uce"}, "rows": [1, 2]}
    path.write_text(json.dumps({**plain, "evaluator": {"evaluator": "mini"}, "model": {"name": "mini"}}))
    found = inspect(path)
    assert found.kind == "record of an evaluation"
    assert found.made == {"concepts": ["church"], "method": "uce", "edit": "ab", "judge": "mini", "model": "mini"}
    assert found.notes == ("2 rows, one per image",)
    path.write_text(json.dumps({**plain, "evaluator": {}, "kind": "attack"}))
    assert inspect(path).kind == "record of an attack"
    path.write_text("{}")
    with pytest.raises(BadFile, match="no record of efface"):
        inspect(path)


def test_damaged_and_unknown_files(tiny, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    edit = UCE()(tiny, ["church"])
    edit.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(BadFile, match="truncated"):
        inspect(path)
    save_safetensors(path, {"a": torch.ones(1)}, {"efface": json.dumps({"format": 1})})
    with pytest.raises(BadEdit, match="maps and guards"):
        inspect(path)
    save_safetensors(path, {"a": torch.ones(1)}, {"efface": json.dumps({"format": 1, "maps": [["x"]], "guards": []})})
    with pytest.raises(BadEdit, match="no factors"):
        inspect(path)
    save_safetensors(path, {"a": torch.ones(1)}, {"efface": json.dumps({"format": 9})})
    with pytest.raises(BadEdit, match="update efface"):
        inspect(path)
    save_safetensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(BadFile, match="of no kind that is known"):
        inspect(path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(BadModel, match="is not valid JSON of an object"):
        inspect(tmp_path)
