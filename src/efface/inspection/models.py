"""Inspect files of other tools: LoRA, full differences, checkpoints, parts of models and diffusers folders."""

import json
import math
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.errors import BadModel
from efface.exporting.architectures import ARCHITECTURES
from efface.inspection import names
from efface.inspection.summary import Group, Summary
from efface.util import untrusted
from efface.util.files import check_safetensors, safetensors_meta

Entries = Mapping[str, Any]
PIPELINES = {
    "StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}  # fmt: skip
CODES = {"F64": "<d", "F32": "<f", "F16": "<e"}
CHECKPOINTS = (  # (a key, architecture)
    ("double_blocks.0.img_attn.qkv.weight", "flux"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "sd3"),
    ("input_blocks.0.0.weight", "sd"),
)
HOMES = {  # beginnings of keys in the original layouts
    "model.diffusion_model.": "denoiser", "double_blocks.": "denoiser", "single_blocks.": "denoiser",
    "first_stage_model.": "autoencoder", "vae.": "autoencoder", "cond_stage_model.": "text encoder",
    "conditioner.": "text encoders", "text_encoders.": "text encoders",
}  # fmt: skip


def lora(path: Path, entries: Entries, meta: Mapping[str, str]) -> Summary:
    """Return what a LoRA or a file of full differences is."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for key in entries:
        module, role = names.role(key)
        if role:
            modules[module][role] = key
    shapes = {key: entry["shape"] for key, entry in entries.items()}
    how, values, alphas = {}, {}, set()
    for module, has in modules.items():
        rank = shapes[has["down"]][0] if "down" in has else 0
        how[module] = f"rank {rank}" if rank else "full difference"
        values[module] = sum(math.prod(shapes[key]) for key in has.values())
        if rank and "alpha" in has:
            alphas.add(round((_scalar(path, entries[has["alpha"]]) or math.nan) / rank, 4))
    layout, way = names.layout_of(entries)
    found = _architecture(modules, shapes, meta)
    roles = {role for has in modules.values() for role in has}
    other = [key for key in entries if not names.role(key)[1]]
    kind = "LoRA" if any("down" in has for has in modules.values()) else "full differences"
    notes = [f"scale (alpha / rank): {', '.join(map(str, sorted(alphas)))}"] if alphas else []
    notes += [f"{len(other)} keys are of no role that is known: {untrusted.some(other)}"] if other else []
    texts = [module for module in modules if module.startswith(names.TEXT)]
    notes += [f"{len(texts)} weights are of text encoders"] if texts else []
    return Summary(
        kind, str(path), path.stat().st_size, names.title(found), names.groups(how, values, {}),
        made=_exported(meta), layout=layout, readers=names.readers(way, found, modules, roles), notes=tuple(notes),
    )  # fmt: skip


def _architecture(
    modules: Mapping[str, Mapping[str, str]], shapes: Mapping[str, Sequence[int]], meta: Mapping[str, str]
) -> str:
    """Return the architecture that a LoRA is for: as its header says, else as its names and shapes tell."""
    stated = _json(meta.get("efface_export", "")).get("architecture")
    if stated in ARCHITECTURES:
        return stated
    if meta.get("ss_base_model_version", "").startswith("sdxl"):
        return "sdxl"
    width = rows = 0
    for module, has in modules.items():
        inner, outer = has.get("down", has.get("diff", "")), has.get("up", has.get("diff", ""))
        if module.endswith(("attn2_to_k", "attn2.to_k", "attn2_to_v", "attn2.to_v")) and inner:
            width = shapes[inner][-1]
        if module.endswith(("context_embedder", "txt_in")) and outer:
            rows = shapes[outer][0]
    return names.architecture(list(modules), width, rows)


def _exported(meta: Mapping[str, str]) -> dict[str, Any]:
    """Return what the header of a file that efface wrote says of the edit, or the few facts of kohya's trainer."""
    about = _json(meta.get("efface_export", "") or meta.get("efface_edit", ""))
    if not about:
        known = {"ss_network_dim": "rank", "ss_network_alpha": "alpha", "ss_output_name": "name"}
        return {word: meta[key] for key, word in known.items() if key in meta}
    found = {key: about[key] for key in ("method", "preset", "seed", "created", "id") if about.get(key)}
    for key in ("erase", "preserve"):
        concepts = [one.get("name") for one in about.get(key, ()) if isinstance(one, dict)]
        found |= {key: concepts} if concepts else {}
    base = about.get("base")
    return {**found, "model": base.get("name", "")} if isinstance(base, dict) else found


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _scalar(path: Path, entry: Mapping[str, Any]) -> float | None:
    """Return the value of a tensor of one number, None for a type that is not read here."""
    begin, end = entry["data_offsets"]
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + begin)
        raw = file.read(end - begin)
    if entry["dtype"] == "BF16" and len(raw) == 2:
        raw, code = b"\0\0" + raw, "<f"
    else:
        code = CODES.get(entry["dtype"], "")
    return struct.unpack(code, raw)[0] if code and len(raw) == struct.calcsize(code) else None


def checkpoint(path: Path, entries: Entries, meta: Mapping[str, str]) -> Summary | None:
    """Return what a checkpoint in an original layout is, None for another file."""
    plain = {key.removeprefix("model.diffusion_model.") for key in entries}
    found = next((architecture for key, architecture in CHECKPOINTS if key in plain), "")
    if not found:
        return None
    if found == "sd" and any(key.startswith("conditioner.") for key in entries):
        found = "sdxl"
    bare = not any(key.startswith("model.diffusion_model.") for key in entries)
    parts: dict[str, list[str]] = defaultdict(list)
    for key in entries:
        home = "denoiser" if bare else "other"
        parts[next((part for head, part in HOMES.items() if key.startswith(head)), home)].append(key)
    tools = ("efface", "diffusers", "ComfyUI", *(("A1111",) if found in ("sd", "sdxl") else ()))
    return Summary(
        "checkpoint in the original layout" + (", the denoiser alone" if bare else ""),
        str(path), path.stat().st_size, names.title(found), _parts(parts, entries), made=_exported(meta),
        layout="original layout", readers=tools, notes=_edited(meta),
    )  # fmt: skip


def _edited(meta: Mapping[str, str]) -> tuple[str, ...]:
    return ("written by efface: some weights are edited",) if "efface_edit" in meta else ()


def _parts(parts: Mapping[str, Sequence[str]], entries: Entries) -> tuple[Group, ...]:
    """Return the parts of a model, with the types of their weights."""
    return tuple(
        Group(
            part, len(keys), (), ", ".join(sorted({entries[key]["dtype"] for key in keys})),
            sum(math.prod(entries[key]["shape"]) for key in keys),
        )
        for part, keys in parts.items()
    )  # fmt: skip


def part(path: Path, entries: Entries, meta: Mapping[str, str]) -> Summary | None:
    """Return what a file of one part of a diffusers folder is, None for another file."""
    signs = {
        "conv_in.weight": "UNet or autoencoder", "context_embedder.weight": "transformer",
        "text_model.embeddings.token_embedding.weight": "text encoder", "shared.weight": "text encoder (T5)",
    }  # fmt: skip
    found = next((what for key, what in signs.items() if key in entries), "")
    if not found:
        return None
    architecture = names.architecture(list(entries))
    group = _parts({found: list(entries)}, entries)
    notes = ("give the folder that holds it: a part alone is no model", *_edited(meta))
    kind = f"part of a model in diffusers' names: {found}"
    return Summary(
        kind, str(path), path.stat().st_size, names.title(architecture), group, made=_exported(meta), notes=notes
    )


def folder(path: Path) -> Summary:
    """Return what a diffusers folder is. Raises `BadModel` for a folder of another kind."""
    if not (path / "model_index.json").is_file():
        raise BadModel(f"{path} holds no model_index.json, so it is not a diffusers folder")
    index = untrusted.read(path / "model_index.json", BadModel)
    kind = str(index.get("_class_name", ""))
    groups, size, notes, made = [], 0, [], {}
    for name, entry in index.items():
        files = sorted((path / name).glob("*.safetensors")) if isinstance(entry, list) and name.isidentifier() else []
        entries: dict[str, Any] = {}
        for file in files:
            entries |= check_safetensors(file)
            size += file.stat().st_size
            meta = safetensors_meta(file)
            made |= _exported(meta)
            notes += [f"{name}: {line}" for line in _edited(meta)]
        groups += _parts({name: list(entries)}, entries) if entries else []
    found = PIPELINES.get(kind, "")
    notes += [] if found else [f"a pipeline of the class {untrusted.shorten(kind)}"]
    return Summary(
        "diffusers folder", str(path), size, names.title(found), tuple(groups), made=made, layout="diffusers",
        readers=("efface", "diffusers"), notes=tuple(notes),
    )  # fmt: skip
