"""A random checkpoint of the size of Stable Diffusion 1.4 on disk, and a vocabulary beside it."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch

WIDTH, LENGTH = 768, 77


def meta_parts() -> dict[str, Any]:
    """Return UNet, autoencoder and text encoder of Stable Diffusion 1.4's size on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
        )
        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(config)}


def make_checkpoint(path: Path) -> None:
    """Write a random checkpoint with Stable Diffusion 1.4's tensors in the original layout, and a vocabulary."""
    pipe = SimpleNamespace(**meta_parts())
    layout = runpy.run_path(str(Path(__file__).resolve().parent.parent / "tests" / "original_layout.py"))
    header, offset = {}, 0
    for key, tensor in layout["to_original"](pipe).items():
        end = offset + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    noise = (0.02 * numpy.random.default_rng(0).standard_normal(1 << 22)).astype("<f4").tobytes()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        while offset > 0:
            file.write(noise[: min(offset, len(noise))])
            offset -= min(offset, len(noise))
    make_vocabulary(path.parent / "tokenizer")


def make_vocabulary(folder: Path) -> None:
    """Write a tokenizer of 49,408 tokens that spells: CLIP's own vocabulary is not ours to ship."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += [f"<{i}>" for i in range(49408 - len(pieces) - 2)] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
