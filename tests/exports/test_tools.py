"""Which keys the tools use: known names, names that are known to change nothing, and diffusers as the witness."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from efface.errors import UnknownName
from efface.exporting.architectures import architecture_of, original_module
from efface.exporting.base import open_base
from efface.exporting.tools import TOOLS, name_in, reads
from efface.util.files import save_safetensors

own = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))
SD = {
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
XL = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
ATTN = "transformer_blocks_{}_attn2_to_{}"
PUBLISHED = {  # names that kohya's trainer writes for full-size models
    "sd": (SD, "kohya", 32, [
        "lora_unet_down_blocks_0_attentions_0_" + ATTN.format(0, "k"),
        "lora_unet_mid_block_attentions_0_" + ATTN.format(0, "v"),
        "lora_unet_up_blocks_3_attentions_2_" + ATTN.format(0, "k"),
    ]),
    "sdxl": (XL, "original", 140, [
        "lora_unet_input_blocks_4_1_" + ATTN.format(0, "k"), "lora_unet_input_blocks_8_1_" + ATTN.format(9, "v"),
        "lora_unet_middle_block_1_" + ATTN.format(9, "k"), "lora_unet_output_blocks_0_1_" + ATTN.format(9, "v"),
        "lora_unet_output_blocks_5_1_" + ATTN.format(1, "k"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_full_size_models_get_the_published_names(architecture: str):
    config, way, count, published = PUBLISHED[architecture]
    with init_empty_weights():
        unet: Any = UNet2DConditionModel(**config)
    modules = [name for name, module in unet.named_modules() if hasattr(module, "weight")]
    text = [name for name in modules if name.endswith(("attn2.to_k", "attn2.to_v"))]
    keys = [name_in(way, architecture, module, unet.config) for module in text]
    assert len(set(keys)) == len(text) == count
    assert set(published) <= set(keys)
    assert architecture_of("UNet2DConditionModel", unet.config) == architecture
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    files = [f"{key}.{end}" for key in keys for end in ends]
    for tool in TOOLS:
        assert not reads(tool, architecture, files, modules, unet.config).ignored, tool


FLUX_MODULES = ["context_embedder", "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"]
UNET_MODULES = ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = KEY.replace(".", "_")
CASES = [  # (architecture, key, the tools that use it)
    ("flux", "transformer.context_embedder.lora_A.weight", {"diffusers", "comfyui"}),
    ("flux", "lora_unet_txt_in.lora_down.weight", {"comfyui"}),
    ("flux", "diffusion_model.txt_in.lora_A.weight", {"comfyui"}),
    ("flux", "lora_unet_context_embedder.lora_down.weight", set()),
    ("flux", "transformer.context_embedder.diff_b", {"comfyui"}),
    ("flux", "transformer.transformer_blocks.0.attn.to_q.diff", {"comfyui"}),
    ("flux", "transformer.transformer_blocks.0.attn.to_q.diff_b", set()),
    ("sd3", "transformer.context_embedder.lora_B.weight", {"diffusers", "comfyui"}),
    ("sd3", "lora_unet_context_embedder.lora_up.weight", {"comfyui"}),
    ("sd3", "lora_unet_txt_in.lora_up.weight", set()),
    ("sd3", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", {"diffusers", "comfyui", "a1111"}),
    ("sd", f"unet.{KEY}.lora_A.weight", {"diffusers"}),
    ("sd", f"unet.{KEY.replace('.to_', '.processor.to_')}.lora_A.weight", {"comfyui"}),
    ("sd", f"lora_unet_{FLAT}.lora_down.weight", {"diffusers", "comfyui", "a1111"}),
    ("sd", f"lora_unet_{FLAT}.lora_A.weight", {"comfyui"}),
    ("sd", f"lora_unet_{FLAT}.diff", {"comfyui", "a1111"}),
    ("sd", "lora_unet_mid_block_attentions_0_transformer_blocks_7_attn2_to_k.lora_up.weight", set()),
    ("sdxl", "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.alpha", {"diffusers", "comfyui", "a1111"}),
]


@pytest.mark.parametrize(("architecture", "key", "wanted"), CASES, ids=[f"{a} {k}" for a, k, _ in CASES])
def test_what_a_key_does(architecture: str, key: str, wanted: set[str]):
    config = {**SD, "layers_per_block": 2}
    modules = UNET_MODULES if architecture in ("sd", "sdxl") else FLUX_MODULES
    found = {tool for tool in TOOLS if reads(tool, architecture, [key], modules, config).used}
    assert found == wanted


def test_what_a_tool_refuses():
    diff = [f"lora_unet_{FLAT}.diff", f"lora_unet_{FLAT}.diff_b"]
    assert "raises an error for full differences" in reads("diffusers", "sd", diff, UNET_MODULES, SD).refuses
    assert "bias without a weight" in reads("a1111", "sd", diff[1:], UNET_MODULES, SD).refuses
    assert not reads("a1111", "sd", diff, UNET_MODULES, SD).refuses
    with pytest.raises(UnknownName, match="did you mean 'comfyui'"):
        reads("comfyu", "sd", diff, UNET_MODULES, SD)


@pytest.mark.parametrize("version", ["tiny", "tiny2", "tiny_xl"])
def test_original_names_are_those_of_the_single_file(version: str, request):
    """Against the tests' own, independent conversion."""
    to_original = runpy.run_path(str(Path(__file__).parents[1] / "original_layout.py"))["to_original"]
    pipe = request.getfixturevalue(version).pipe
    stored = {key.removeprefix("model.diffusion_model.") for key in to_original(pipe) if "diffusion_model" in key}
    base = open_base(pipe)
    names = {original_module(base.architecture, module, base.config) for module in base.modules}
    assert {f"{name}.weight" for name in names} == {key for key in stored if key.endswith(".weight")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "key"),
    [
        ("flux", "lora_unet_txt_in"), ("flux", "diffusion_model.txt_in"), ("sd3", "lora_unet_context_embedder"),
        ("flux", "transformer.context_embedder"), ("sd3", "transformer.context_embedder"),
    ],
)  # fmt: skip
def test_diffusers_agrees_about_what_changes_nothing(make: str, key: str, tmp_path: Path):
    """Each kind of name is loaded by diffusers: the outputs change where the table says that the key is used."""
    pytest.importorskip("peft")
    pipe = getattr(own, make)()
    base = open_base(pipe)
    before = own.output(pipe.transformer)
    ends = ("lora_A", "lora_B") if "." in key else ("lora_down", "lora_up")
    tensors = {f"{key}.{ends[0]}.weight": torch.ones(1, 32), f"{key}.{ends[1]}.weight": torch.ones(32, 1)}
    path = tmp_path / "one.safetensors"
    save_safetensors(path, tensors, {"format": "pt"})
    used = reads("diffusers", base.architecture, tensors, base.modules, base.config).used
    try:
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    except (ValueError, KeyError, IndexError):
        assert not used
    assert torch.equal(own.output(pipe.transformer), before) == (not used)
