"""What a model's index and the configurations of its parts must be for efface to read it.

Checked before anything is built: the numbers decide how much is allocated and how often a library loops.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.util.untrusted import is_count, shorten

LIBRARIES = ("diffusers", "transformers")
NOT_READ = ("safety_checker", "image_encoder", "feature_extractor")  # not needed to edit or measure a model

MOST = {  # whole numbers in configurations, also in lists, with the largest that is read; SDXL's are far below
    "layers_per_block": 64,
    "transformer_layers_per_block": 64,
    "reverse_transformer_layers_per_block": 64,
    "mid_block_layers": 64,
    "num_hidden_layers": 256,
    "num_layers": 256,
    "num_single_layers": 256,
    "num_heads": 1024,
    "num_attention_heads": 1024,
    "attention_head_dim": 65536,
    "patch_size": 64,
    "pos_embed_max_size": 4096,
    "joint_attention_dim": 65536,
    "caption_projection_dim": 65536,
    "pooled_projection_dim": 65536,
    "d_model": 65536,
    "d_kv": 65536,
    "d_ff": 262144,
    "block_out_channels": 65536,
    "hidden_size": 65536,
    "intermediate_size": 262144,
    "vocab_size": 4_000_000,
    "max_position_embeddings": 65536,
    "num_train_timesteps": 100_000,
    "in_channels": 4096,
    "out_channels": 4096,
    "latent_channels": 4096,
}
LEVELS = 16  # of a UNet or autoencoder
SIDE = 4096  # of latents; of images, this times their factor


def check_index(path: Path, index: Mapping[str, Any]) -> None:
    """Raise `BadModel` unless every part of an index is of diffusers, of transformers, or left out.

    diffusers imports whatever library an index names.
    """
    if not isinstance(index.get("_class_name"), str):
        raise BadModel(f"{path} has a bad index: it names no class of pipeline")
    for name, entry in index.items():
        if not isinstance(entry, list):
            continue
        if not (name.isidentifier() and not name.startswith("_")):
            raise BadModel(f"{path} has a bad index: {shorten(name)!r} is no name of a part")
        known = name in NOT_READ or (len(entry) == 2 and (entry == [None, None] or entry[0] in LIBRARIES))
        if not known or not all(isinstance(word, str | None) for word in entry):
            raise BadModel(
                f"{path} has a bad index: its {name} is {shorten(str(entry))}, expected a library "
                f"({' or '.join(LIBRARIES)}) and a class"
            )


def check(path: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `BadModel` for a configuration with a number out of bounds, of a quantised part, or of another task."""
    for part, config in configs.items():
        if config.get("quantization_config") is not None:
            raise BadModel(
                f"{path} is quantised: its {part} has a quantization_config; give the model as it was before, with "
                "weights in float16 or wider"
            )
        for name, most in MOST.items():
            _check_number(path, part, name, config.get(name), most)
    for part in ("unet", "transformer"):
        if part in configs:
            _check_denoiser(path, part, configs[part])


def _check_number(path: Path, part: str, name: str, value: Any, most: int) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) > LEVELS:
        raise BadModel(f"{path}: {name} of its {part} has {len(numbers)} entries, at most {LEVELS} are read")
    for number in numbers:
        if isinstance(number, list | tuple):
            _check_number(path, part, name, number, most)
        elif number is not None and not is_count(number, 1, most):
            raise BadModel(f"{path}: {name} of its {part} is {shorten(repr(value))}, expected 1 to {most}")


def _check_denoiser(path: Path, part: str, config: Mapping[str, Any]) -> None:
    """Check the size of the latents, and that what is denoised is all that is read."""
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    sized = part == "unet" or size is not None  # a transformer with rotary embeddings has none
    if sized and not all(is_count(side, 1, SIDE) for side in sides):
        raise BadModel(
            f"{path}: sample_size of its {part} is {shorten(repr(size))}, expected the side of its latents, 1 to {SIDE}"
        )
    read, written = config.get("in_channels"), config.get("out_channels")
    if read is not None and written is not None and read != written:
        raise BadModel(f"{path}: its denoiser reads {read} channels and writes {written}: no text-to-image model")
