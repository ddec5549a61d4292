"""Edit a folder of SDXL's size without loading it: seconds and peak memory of `efface erase uce --stream` and its copy.

The weights are random, in float16, of the shapes of SDXL base; the vocabulary is mini's. Nothing is learned about
quality, only what a checkpoint of this size costs. Needs 14 GB of disk.

    python benchmarks/stream.py FOLDER [--record]    # writes the checkpoint into FOLDER once, about 7 GB
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from efface.edits.provenance import git, versions
from efface.util.files import writing
from efface.util.shipped import SHIPPED

RECORD = Path(__file__).resolve().parent / "records" / "stream.json"
UNET: dict[str, Any] = {
    "sample_size": 128, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 1024, "scaling_factor": 0.13025,
    "force_upcast": True,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def make(folder: Path) -> None:
    """Write a diffusers folder of SDXL base's shapes."""
    words = CLIPTokenizer.from_pretrained(SHIPPED["mini"].weights / "tokenizer", model_max_length=77)
    with torch.device("meta"):
        ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
        more = {"hidden_act": "gelu", "projection_dim": 1280}
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(latent_channels=4, **VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, **ids)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, **ids, **more)),
        }  # fmt: skip
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    for name, module in parts.items():
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        diffusers = hasattr(module, "save_config")
        (module.save_config if diffusers else module.config.save_pretrained)(own)
        rng = torch.Generator().manual_seed(0)
        tensors = {key: drawn(t.shape, rng) for key, t in module.state_dict().items() if t.is_floating_point()}
        save_file(tensors, own / ("diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors"))
        index[name] = ["diffusers" if diffusers else "transformers", type(module).__name__]
        print(f"{name}: {sum(t.numel() for t in tensors.values()) / 1e6:,.0f} million values", flush=True)
    for name in ("tokenizer", "tokenizer_2"):
        words.save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def drawn(shape: torch.Size, rng: torch.Generator) -> torch.Tensor:
    """Return random values of the usual size in float16: of norms 1, of matrices 1/√width."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=torch.float16)
    return torch.empty(shape, dtype=torch.float16).uniform_(-1, 1, generator=rng) * shape[1:].numel() ** -0.5


def timed(*command: str) -> dict[str, float]:
    """Run a command of efface; return its seconds and its peak memory, GB."""
    began = time.perf_counter()
    _, status, usage = os.wait4(subprocess.Popen([sys.executable, "-m", "efface", *command]).pid, 0)
    if status:
        raise SystemExit(f"efface {command[0]} failed")
    return {"seconds": round(time.perf_counter() - began, 1), "peak_gb": round(usage.ru_maxrss / 2**20, 2)}


def main() -> None:
    """Write the checkpoint if it is not there, edit it, copy it, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    model, edit, copy = (options.folder / name for name in ("model", "church.safetensors", "copy"))
    if not (model / "model_index.json").exists():
        make(model)
    shutil.rmtree(copy, ignore_errors=True)
    found = {"erase": timed("erase", "uce", "church", "--model", str(model), "--stream", "-o", str(edit))}
    found["export"] = timed("export", str(edit), "--to", "diffusers-folder", "--model", str(model), "-o", str(copy))
    size = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
    result = {"checkpoint_gb": round(size / 1e9, 2), **found, "versions": versions(), "git": git()}
    print(json.dumps(result, indent=1))
    if options.record:
        with writing(RECORD) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
