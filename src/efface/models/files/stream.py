"""Erase from a checkpoint without loading it: only its text encoder and its key and value matrices are read.

The 860 million other weights of a Stable Diffusion stay on disk; peak memory is that of the text encoder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadFile, BadInput, BadModel
from efface.models.files.load import silent_libraries
from efface.models.files.tensors import Place, places, read, weight_files, write_copy
from efface.models.model import Model
from efface.util.files import check_safetensors, opened, safetensors_meta

if TYPE_CHECKING:
    from transformers import CLIPTextModel

FROM_CLIP = "cond_stage_model.transformer.text_model."
FROM_OPEN_CLIP = "cond_stage_model.model."
OPEN_CLIP = {  # OpenCLIP's names inside a layer, and what transformers calls them
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}
OPEN_CLIP_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


@dataclass(frozen=True, eq=False)
class StreamedModel(Model):
    """View a checkpoint on disk as a model that can encode text and has key and value matrices, and nothing else."""

    @cached_property
    def id(self) -> str:
        """Return "": nobody knows which model it is without reading all of it."""
        return ""

    @property
    def device(self) -> torch.device:
        """Return where its text encoder is; the rest of the denoiser is nowhere."""
        return torch.device("cpu")


def write(
    edit: Edit,
    where: str | os.PathLike[str],
    out: str | os.PathLike[str],
    any_base: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
) -> None:
    """Write an edited copy of a checkpoint; everything the edit does not change is copied as it is, in blocks.

    out: a .safetensors file for a file, a new folder for a folder. Values are added in float32 or wider and rounded
    once to the type in the file. Raises `BadEdit` for an edit with guards or, unless `any_base`, of other weights,
    and `WriteError`.
    """
    source, target = Path(where), Path(out)
    if edit.guards:
        raise BadEdit("a guard works while images are drawn: it cannot be written into a checkpoint")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise BadInput(f"{out} is the checkpoint itself: write the edited copy somewhere else")
    config = _unet_config(source)
    at = places(source, edit.names, config["layers_per_block"])
    edit.check(_view(source, _empty_unet(config), at), any_base)

    def value(name: str, old: Tensor) -> Tensor:
        terms = [m.delta(old.float()) for m in edit.maps if name in m.names]
        terms += [edit.delta[name].float()] if name in edit.delta else []
        return sum(terms, old.float())

    about = {key: edit.meta[key] for key in ("method", "fields", "erase", "keep", "op") if key in edit.meta}
    write_copy(source, target, at, value, {"efface_edit": json.dumps({"id": edit.id, **about})})


def open_model(where: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None) -> StreamedModel:
    """Open a checkpoint: its tokenizer, its text encoder, and the key and value matrices that read the text.

    Raises `BadFile` and `BadModel`.
    """
    path = Path(where)
    pipe = _from_file(path, tokenizer) if path.is_file() or path.suffix else _from_folder(path)
    names = StreamedModel(pipe).text_weights()
    if not names:
        raise BadModel(f"{where} has no cross-attention to edit")
    _fill(pipe.unet, path, places(path, names, pipe.unet.config.layers_per_block))
    return StreamedModel(pipe, name=os.fspath(where))


def _view(path: Path, unet: Any, at: Mapping[str, Place]) -> StreamedModel:
    """Return a model that has some weights of its denoiser and nothing else, to check an edit on."""
    _fill(unet, path, at)
    return StreamedModel(_assemble(unet, None, None), name=os.fspath(path))


def _fill(unet: Any, where: Path, at: Mapping[str, Place]) -> None:
    """Read weights into an empty denoiser, in float32; raises `BadModel` for one of another shape."""
    for name, value in read(at):
        module, _, leaf = name.removeprefix("unet.").rpartition(".")
        owner = unet.get_submodule(module)
        if value.shape != getattr(owner, leaf).shape:
            shapes = f"{list(value.shape)}, expected {list(getattr(owner, leaf).shape)}"
            raise BadModel(f"{where} does not hold together: {name} is {shapes}")
        setattr(owner, leaf, nn.Parameter(value.float(), requires_grad=False))


def _unet_config(path: Path) -> dict[str, Any]:
    if path.is_file():
        return _configs(path)["unet"]
    try:
        return json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} is not a diffusers model folder: it has no unet/config.json") from error


def _configs(path: Path) -> dict[str, dict[str, Any]]:
    from efface.models.files import single_file

    shapes = {name: entry["shape"] for name, entry in check_safetensors(path).items()}
    meta = safetensors_meta(path)
    single_file._check_kind(path, shapes, meta)
    try:
        return single_file._configs(shapes, meta, "")
    except (KeyError, IndexError, ValueError) as error:
        raise BadModel(f"{path} is not a complete Stable Diffusion checkpoint: no tensor {error}") from error


def _empty_unet(config: dict[str, Any]) -> Any:
    """Return a denoiser with the shapes of its weights and no values."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    return unet.eval().requires_grad_(False)


def _assemble(unet: Any, encoder: Any, words: Any) -> Any:
    """Return a pipeline of what there is; the scheduler is not used."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts: Any = {"unet": unet, "text_encoder": encoder, "tokenizer": words}
    parts |= dict.fromkeys(("vae", "safety_checker", "feature_extractor"))
    parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _from_folder(path: Path) -> Any:
    from diffusers import DiffusionPipeline

    if not (path / "model_index.json").is_file():
        raise BadModel(f"{path} is not a diffusers model folder: it has no model_index.json")
    for part in ("text_encoder", "text_encoder_2", "unet"):
        for file in weight_files(path / part) if (path / part).is_dir() else ():
            check_safetensors(file)
    parts: dict[str, Any] = {"unet": _empty_unet(_unet_config(path))}
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        parts |= {
            name: None for name in ("vae", "safety_checker", "feature_extractor", "image_encoder") if name in index
        }
        with silent_libraries():
            pipe = DiffusionPipeline.from_pretrained(str(path), **parts, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadModel(f"{path} cannot be read by diffusers: {' '.join(str(error).split())[:200]}") from error
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).float().eval().requires_grad_(False)
    return pipe


def _from_file(path: Path, tokenizer: str | os.PathLike[str] | None) -> Any:
    from efface.models.files.tokenizer import find_tokenizer

    configs = _configs(path)
    config = configs["text_encoder"]
    with opened(path) as tensors:
        keys = list(tensors.keys())
        open_clip = any(key.startswith(FROM_OPEN_CLIP) for key in keys)
        state = (_open_clip_state if open_clip else _clip_state)(tensors, keys, config["num_hidden_layers"])
    words = find_tokenizer(path, tokenizer, config["vocab_size"], pad="!" if open_clip else "")
    words.model_max_length = config["max_position_embeddings"]
    return _assemble(_empty_unet(configs["unet"]), _text_encoder(path, config, state), words)


def _text_encoder(path: Path, config: dict[str, Any], state: dict[str, Tensor]) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel

    plain = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**plain))
    wrapped = any(name.startswith("text_model.") for name in encoder.state_dict())  # transformers before 5
    state = {("text_model." if wrapped else "") + name: value for name, value in state.items()}
    missing = encoder.load_state_dict(state, strict=False, assign=True).missing_keys
    if missing:
        raise BadModel(
            f"{path} is not a complete Stable Diffusion checkpoint: it has nothing for text_encoder.{missing[0]}"
        )
    for name, buffer in list(encoder.named_buffers()):  # position_ids are made, not stored
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            encoder.get_submodule(owner).register_buffer(leaf, torch.arange(buffer.shape[-1])[None], persistent=False)
    return encoder.eval().requires_grad_(False)


def _clip_state(tensors: Any, keys: Sequence[str], layers: int) -> dict[str, Tensor]:
    """Read OpenAI's text encoder as Stable Diffusion 1.x stores it, in float32."""
    own = [key for key in keys if key.startswith(FROM_CLIP) and not key.endswith("position_ids")]
    return {key.removeprefix(FROM_CLIP): tensors.get_tensor(key).float() for key in own}


def _open_clip_state(tensors: Any, keys: Sequence[str], layers: int) -> dict[str, Tensor]:
    """Read OpenCLIP's text encoder as Stable Diffusion 2.x stores it, in float32, without the layers not used."""
    state = {new: tensors.get_tensor(FROM_OPEN_CLIP + old).float() for old, new in OPEN_CLIP_ENDS.items()}
    for key in keys:
        number, _, rest = key.removeprefix(f"{FROM_OPEN_CLIP}transformer.resblocks.").partition(".")
        if not number.isdecimal() or int(number) >= layers:
            continue
        home = f"encoder.layers.{number}."
        value = tensors.get_tensor(key).float()
        if rest.startswith("attn.in_proj_"):
            for which, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{home}self_attn.{which}_proj.{rest.removeprefix('attn.in_proj_')}"] = part.contiguous()
        else:
            found = [rest.replace(old, new, 1) for old, new in OPEN_CLIP.items() if rest.startswith(old)]
            state |= {home + name: value for name in found}
    return state
